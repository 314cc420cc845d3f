"""What is run: a block, its example inputs and the call that joins them."""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Entry, Inputs, InputSize


def make_inputs(
    entry: Entry,
    config: dict[str, Any],
    extent: InputSize,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    """Normal random inputs of the entry's layout, by the name of the forward call's argument."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def random(*shape: int) -> Tensor:
        if device == "meta":
            return torch.empty(shape, dtype=dtype, device=device)
        return torch.randn(shape, generator=generator).to(device=device, dtype=dtype)

    with torch.device(device):
        return entry.inputs(random, extent, entry.bind(**config))


def arguments(block: nn.Module, inputs: Inputs) -> tuple[list[Any], dict[str, Any]]:
    """The inputs as arguments of the block's forward; its keyword-only ones go by keyword."""
    forward = getattr(block, "_orig_mod", block).forward  # a compiled module hides its signature
    parameters = inspect.signature(forward).parameters
    keywords = {
        name: value
        for name, value in inputs.items()
        if name in parameters and parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    }
    return [value for name, value in inputs.items() if name not in keywords], keywords


def call(block: nn.Module, inputs: Inputs) -> Any:
    """Run the block on its inputs."""
    positional, keywords = arguments(block, inputs)
    return block(*positional, **keywords)


def randomize_parameters(block: nn.Module) -> None:
    """Move every parameter off its initial value: nothing shows behind a gate of zero."""
    generator = torch.Generator("cpu").manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter))


def to_channels_last(entry: Entry, block: nn.Module, inputs: Inputs) -> Inputs:
    """The block's weights and its image inputs in channels_last.

    Raises ValueError where an input is no image or list of images.
    """
    if any(t.ndim != 4 for t in tensors(inputs)):
        raise ValueError(
            f"channels_last=True needs images (B, C, H, W) alone; {entry.name} takes "
            f"{' + '.join(str(tuple(t.shape)) for t in tensors(inputs))}: leave it out"
        )
    block.to(memory_format=torch.channels_last)
    return _each(inputs, lambda t: t.contiguous(memory_format=torch.channels_last))


@contextlib.contextmanager
def evaluating(block: nn.Module) -> Iterator[None]:
    """Within it the block is in eval mode; afterwards each of its modules is in its own again."""
    modes = [(module, module.training) for module in block.modules()]
    block.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def first(inputs: Inputs) -> Inputs:
    """The first sample of every input; all have the batch first, but for single numbers."""

    def sample(tensor: Tensor) -> Tensor:
        return tensor[:1] if tensor.ndim else tensor

    return {
        key: [sample(t) for t in value] if isinstance(value, list) else sample(value)
        for key, value in inputs.items()
    }


def tensors(*values: Any) -> Iterator[Tensor]:
    """All tensors of nested lists, tuples and dicts."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from tensors(*value.values())
        elif isinstance(value, (list, tuple)):
            yield from tensors(*value)


def leaves(inputs: Inputs, dtype: torch.dtype | None = None, device: str | None = None) -> Inputs:
    """Copies of the inputs that want a gradient where they can, cast and moved where asked."""

    def leaf(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else None
        copy = tensor.detach().clone().to(device=device, dtype=kind)
        return copy.requires_grad_(copy.is_floating_point())

    return _each(inputs, leaf)


def _each(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    return {
        key: [change(t) for t in value] if isinstance(value, list) else change(value)
        for key, value in inputs.items()
    }
