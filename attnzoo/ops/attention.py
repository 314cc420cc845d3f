"""Softmax attention in plain operations, the reference for faster implementations."""

import math

import torch
from torch import Tensor

from .precision import upcast
from .softmax import softmax_of_few


def attention(
    q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None = None, causal: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of (..., N, d), (..., M, d), (..., M, e) -> (..., N, e).

    A pair that is True in `ignored`, which is broadcast, has no weight; with `causal` it is those
    of later keys. Scores of half precision are computed in float32, where they cannot overflow.
    """
    y: Tensor = attention_weights(q, k, ignored, causal).to(v.dtype) @ v
    return y


def attention_weights(
    q: Tensor, k: Tensor, ignored: Tensor | None = None, causal: bool = False
) -> Tensor:
    """The weights of `attention`, (..., N, M), in float32 at least."""
    scores = upcast(q) * q.shape[-1] ** -0.5 @ upcast(k).mT
    if causal:
        ignored = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    if ignored is not None:
        scores = scores.masked_fill(ignored, -math.inf)
    return softmax_of_few(scores)
