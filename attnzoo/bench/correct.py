"""Is it right here? No time is printed for a block that is not."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.by_hand import plain_forms
from ..reference import verify
from ..registry import Entry, Inputs, build
from .workload import call, leaves, tensors


def fault(entry: Entry, config: dict[str, Any], block: nn.Module, inputs: Inputs) -> str | None:
    """What is wrong with the block on this device and dtype, or None.

    First its reference vectors are run again; then its outputs and gradients on these inputs are
    compared with its plain form in float64 on the CPU. Both sides see the same rounded numbers,
    so what is left is the arithmetic's own rounding: half of the dtype's digits are asked for,
    of the root mean square of each tensor.
    """
    for verdict in verify(entry.name):
        if not verdict.passed:
            return (
                f"reference case {verdict.case!r} is off by {verdict.error:.1e} in {verdict.worst}"
            )
    twin = build(entry.name, **config, dtype=torch.float64)
    twin.load_state_dict(block.state_dict())
    found = _results(block.eval(), inputs)
    with plain_forms():
        wanted = _results(twin.eval(), inputs, double=True)
    dtype = next(t.dtype for t in tensors(inputs) if t.is_floating_point())
    limit = math.sqrt(torch.finfo(dtype).eps)
    floor = 1e-3 * max((_size(t) for t in wanted.values()), default=0.0)
    for key, theirs in wanted.items():
        error = _size(found[key].to("cpu", torch.float64) - theirs) / max(_size(theirs), floor)
        if not error <= limit:
            return f"{key} is off by {error:.1e} from the plain form in float64 (limit {limit:.0e})"
    return None


def _results(block: nn.Module, inputs: Inputs, double: bool = False) -> dict[str, Tensor]:
    """Outputs and gradients by name, for a gradient of ones."""
    mine = leaves(inputs, torch.float64 if double else None, "cpu" if double else None)
    outputs = list(tensors(call(block, mine)))
    wanted = {f"input {i}": t for i, t in enumerate(tensors(mine)) if t.requires_grad}
    wanted |= {f"parameter {key}": p for key, p in block.named_parameters()}
    results = [o for o in outputs if o.requires_grad]
    grads = torch.autograd.grad(
        results, list(wanted.values()), [torch.ones_like(o) for o in results], allow_unused=True
    )
    found = {f"output {i}": o.detach() for i, o in enumerate(outputs) if o.is_floating_point()}
    found |= {f"gradient of {k}": g for k, g in zip(wanted, grads, strict=True) if g is not None}
    return found


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0
