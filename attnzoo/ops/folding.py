"""Whether a layer may be computed from its parameters instead of being called."""

from typing import TypeGuard

from torch import Tensor, nn

from .. import _torch

_SAME_SIZE: dict[str, object] = {"stride": (1, 1), "dilation": (1, 1), "padding_mode": "zeros"}


def is_plain(layer: nn.Module, kind: type[nn.Module], **settings: object) -> bool:
    """Whether calling the layer does nothing but what `kind` does with its parameters.

    A layer that is hooked, wrapped, parametrized, quantized, sharded or replaced, or one whose
    attributes are not these `settings`, is not: it is called, so that what was added to it acts.
    """
    if type(layer) is not kind or _torch.is_hooked(layer):
        return False
    for parameter in _torch.own_parameters(layer):  # all() of a generator takes twice as long
        if type(parameter) not in (Tensor, nn.Parameter):
            return False
    return all(getattr(layer, name) == value for name, value in settings.items())


def is_depthwise(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether the layer plainly convolves each channel by itself and keeps the size of a map."""
    if not (isinstance(layer, nn.Conv2d) and is_plain(layer, nn.Conv2d, **_SAME_SIZE)):
        return False
    margin = (layer.kernel_size[0] // 2, layer.kernel_size[1] // 2)
    return layer.padding == margin and layer.groups == layer.in_channels == layer.out_channels


def is_pointwise(layer: nn.Module, groups: int = 1) -> TypeGuard[nn.Conv2d]:
    """Whether the layer is plainly one matrix, and a bias, for every pixel of an image."""
    return (
        isinstance(layer, nn.Conv2d)
        and is_plain(layer, nn.Conv2d, kernel_size=(1, 1), stride=(1, 1), groups=groups)
        and layer.padding in (0, (0, 0))
    )


def is_projection(layer: nn.Module) -> TypeGuard[nn.Conv1d]:
    """Whether the layer is plainly one matrix and a bias for every step of a series."""
    return (
        isinstance(layer, nn.Conv1d)
        and is_plain(layer, nn.Conv1d, kernel_size=(1,), stride=(1,), groups=1, padding=(0,))
        and layer.bias is not None
    )
