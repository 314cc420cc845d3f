"""Exact costs: parameters, multiply-adds, bytes that must move, bytes kept for backward."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.by_hand import plain_forms
from ..registry import Inputs
from .workload import call, tensors


class Traffic(NamedTuple):
    """Bytes that any implementation must read or write at least."""

    forward: int  # input + output + parameters
    training: int  # plus the gradients of all three


def macs(block: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds of one sample's forward pass: convolutions, matrix products, attention.

    The inputs are those of a whole batch; every operation's work must grow with it evenly.
    """
    from torch.utils.flop_counter import FlopCounterMode

    batch = next(tensors(inputs)).shape[0]
    mode = block.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), plain_forms(), counter:
        call(block.eval(), inputs)
    block.train(mode)
    return int(counter.get_total_flops()) // 2 // batch


def traffic(block: nn.Module, inputs: Inputs, output: Any) -> Traffic:
    """Input, output and parameter bytes, and with their gradients."""
    parameters = sum(_bytes(p) for p in block.parameters())
    inward = sum(_bytes(t) for t in tensors(inputs))
    outward = sum(_bytes(t) for t in tensors(output))
    forward = parameters + inward + outward
    return Traffic(forward=forward, training=2 * forward)


def saved_bytes(block: nn.Module, inputs: Inputs) -> int:
    """Bytes of distinct storages that autograd keeps between forward and backward.

    Parameters and inputs are not counted: they exist anyway.
    """
    held = {_storage(t) for t in (*block.parameters(), *block.buffers(), *tensors(inputs))}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in held:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call(block, inputs)
    del output
    return sum(kept.values())


def peak_bytes(block: nn.Module, inputs: Inputs, device: str) -> int | None:
    """Most bytes a training step holds above what was there before it; None where not counted."""
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    outputs = [t for t in tensors(call(block, inputs)) if t.requires_grad]
    wanted = [t for t in (*tensors(inputs), *block.parameters()) if t.requires_grad]
    torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs], allow_unused=True)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
