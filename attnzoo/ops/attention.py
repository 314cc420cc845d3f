"""Softmax attention in plain operations, the reference for faster implementations."""

from torch import Tensor

from .precision import upcast


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of (..., N, d), (..., M, d), (..., M, e) -> (..., N, e).

    Scores of half precision are computed in float32, where they cannot overflow.
    """
    scores = upcast(q) * q.shape[-1] ** -0.5 @ upcast(k).mT  # ... N M
    y: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return y
