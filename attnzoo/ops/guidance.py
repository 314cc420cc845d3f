"""Repeated upsampling of a map by 2, guided by an image."""

from collections.abc import Callable, Iterable

from torch import Tensor

from .pooling import adaptive_average


def double_along(
    source: Tensor, guidance: Tensor, steps: Iterable[Callable[[Tensor, Tensor], Tensor]]
) -> Tensor:
    """Applies the steps in turn; each doubles the map's size, guided by an image of the new size.

    That image is the whole guidance, average-pooled.
    """
    for step in steps:
        size = (2 * source.shape[2], 2 * source.shape[3])
        source = step(source, adaptive_average(guidance, *size))
    return source
