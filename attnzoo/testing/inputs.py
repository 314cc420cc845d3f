"""Example inputs of a block, and the call of the block on them."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..registry import Entry, Inputs, InputSize
from ..validation.signature import arguments as arguments
from ..validation.tensors import map_tensors as map_tensors
from ..validation.tensors import tensors as tensors


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


def call(block: nn.Module, inputs: Inputs) -> Any:
    """Run the block on its inputs."""
    positional, keywords = arguments(block, inputs)
    return block(*positional, **keywords)


def samples(block: nn.Module, inputs: Inputs, which: slice) -> Inputs:
    """The given samples of every input; what all samples share is returned unchanged."""

    def taken(key: str, value: Any) -> Any:
        axis = batch_axis(block, key)
        if axis is None:
            return value
        index = (slice(None),) * axis + (which,)
        return map_tensors(lambda tensor: tensor[index] if tensor.ndim else tensor, value)

    return {key: taken(key, value) for key, value in inputs.items()}


def batch_axis(block: nn.Module, key: str) -> int | None:
    """The batch axis of an argument: 0, unless the block's attribute `batch_axes` overrides it.

    None: the samples share the argument.
    """
    axes: Mapping[str, int | None] = getattr(block, "batch_axes", {})
    return axes.get(key, 0)


def randomize_parameters(block: nn.Module, *, by_fan_in: bool = False) -> None:
    """Add noise to every parameter, since a gate initialized to zero would hide errors.

    The standard deviation of the noise is 0.1. With `by_fan_in` it is less in layers with a large
    fan-in: sums that grow with the width would saturate a softmax, and arithmetic on the denormal
    numbers that result is a hundred times as slow.
    """
    generator = torch.Generator("cpu").manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            summed = parameter[0].numel() if parameter.ndim > 1 and len(parameter) else 1
            std = min(0.1, summed**-0.5) if by_fan_in else 0.1
            parameter.add_((std * noise).to(parameter))


def to_channels_last(entry: Entry, block: nn.Module, inputs: Inputs) -> Inputs:
    """Convert the block's weights, in place, and its image inputs to channels_last.

    Raises ValueError if an input is not an image or a list of images.
    """
    if any(t.ndim != 4 for t in tensors(inputs)):
        raise ValueError(
            f"channels_last=True needs all inputs to be images (B, C, H, W); {entry.name} takes "
            f"{' + '.join(str(tuple(t.shape)) for t in tensors(inputs))}: leave it out"
        )
    channels_last = torch.channels_last
    block.to(memory_format=channels_last)
    return cast(Inputs, map_tensors(lambda t: t.contiguous(memory_format=channels_last), inputs))


def leaves(inputs: Inputs, dtype: torch.dtype | None = None, device: str | None = None) -> Inputs:
    """Copies of the inputs, optionally cast and moved; floating ones require a gradient."""

    def leaf(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else None
        copy = tensor.detach().clone().to(device=device, dtype=kind)
        return copy.requires_grad_(copy.is_floating_point())

    return cast(Inputs, map_tensors(leaf, inputs))
