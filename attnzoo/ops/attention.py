"""Softmax attention in plain operations, the reference for faster implementations."""

from torch import Tensor

from .precision import upcast


def attention(q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of (..., N, d), (..., M, d), (..., M, e) -> (..., N, e).

    Scores of half precision are computed in float32, where they cannot overflow. `ignored`, which
    broadcasts to (..., N, M), is True for keys without weight; each query needs one with.
    """
    scores = upcast(q) * q.shape[-1] ** -0.5 @ upcast(k).mT  # ... N M
    if ignored is not None:
        scores = scores.masked_fill(ignored, float("-inf"))
    y: Tensor = scores.softmax(-1).to(v.dtype) @ v
    return y
