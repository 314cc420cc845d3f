"""Sequences with any number of leading axes, computed as one batch."""

from torch import Tensor


def fold(x: Tensor, keep: int = 2) -> Tensor:
    """(..., T, C) to (N, T, C): all axes before the last `keep` become one, made where absent."""
    return x.unsqueeze(0) if x.ndim == keep else x.flatten(0, -keep - 1)


def unfold(y: Tensor, like: Tensor, keep: int = 2) -> Tensor:
    """(N, *rest) to (..., *rest), with the leading axes of `like`, which `fold` took away."""
    return y.reshape(like.shape[:-keep] + y.shape[1:])
