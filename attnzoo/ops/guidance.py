"""Doubling a map step by step along a guiding image."""

from collections.abc import Callable, Iterable

from torch import Tensor

from .pooling import adaptive_average


def double_along(
    source: Tensor, guidance: Tensor, steps: Iterable[Callable[[Tensor, Tensor], Tensor]]
) -> Tensor:
    """Each step takes the map and the whole guidance averaged to twice its size, and doubles it."""
    for step in steps:
        size = (2 * source.shape[2], 2 * source.shape[3])
        source = step(source, adaptive_average(guidance, *size))
    return source
