"""Whether a layer may be computed from its parameters instead of being called."""

from typing import TypeGuard

from torch import Tensor, nn

from .. import _torch


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the layer does exactly what `kind` does with its parameters.

    A layer that is hooked, wrapped, parametrized, quantized, sharded or replaced is not plain; it
    must be called, so that these additions take effect.
    """
    return (
        type(layer) is kind
        and not _torch.is_hooked(layer)
        and all(type(p) in (Tensor, nn.Parameter) for p in layer.parameters())
    )


def is_pointwise(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether the layer is a plain 1x1 convolution: one matrix, and a bias, for every pixel."""
    return (
        isinstance(layer, nn.Conv2d)
        and is_plain(layer, nn.Conv2d)
        and (layer.kernel_size, layer.stride, layer.groups) == ((1, 1), (1, 1), 1)
        and layer.padding in (0, (0, 0))
    )
