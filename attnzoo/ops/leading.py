"""Sequences with any number of leading axes, computed as one batch."""

from torch import Tensor


def fold(x: Tensor, keep: int = 2) -> Tensor:
    """(..., T, C) to (N, T, C): merges the axes before the last `keep`, or adds one if none."""
    return x.unsqueeze(0) if x.ndim == keep else x.flatten(0, -keep - 1)


def unfold(y: Tensor, like: Tensor, keep: int = 2) -> Tensor:
    """(N, *rest) to (..., *rest): restores the leading axes of `like`, which `fold` merged."""
    return y.reshape(like.shape[:-keep] + y.shape[1:])
