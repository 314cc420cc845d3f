"""A pixel's series normalized and pooled over time: the shared parts of temporal encoders."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import upcast


def group_norm_over_time(
    x: Tensor, groups: int, eps: float, padded: Tensor | None = None
) -> Tensor:
    """Normalizes (B, P, C, T) by the mean and variance over a group's channels and all steps.

    Padded steps, True in `padded` (B, T), are left out of the statistics and set to zero.
    """
    b, p, c, t = x.shape
    if padded is None:
        return torch.group_norm(x.flatten(0, 1), groups, eps=eps).view(b, p, c, t)
    centered, _, variance = _centered(x, groups, padded)
    return (centered * (variance + eps).rsqrt()).flatten(2, 3).to(x.dtype)


def balanced(x: Tensor, groups: int, padded: Tensor) -> Tensor:
    """(B, P, C, T) to (B, P, C, 2 T): the series twice, of the mean and variance of its steps.

    In place of a padded step stands once the mean of its group plus the deviation, once less it,
    so that a group norm of both is one without the padded steps, True in `padded` (B, T).
    """
    centered, mean, variance = _centered(x, groups, padded)
    constant = variance == 0
    deviation = variance.masked_fill(constant, 1).sqrt().masked_fill(constant, 0)
    apart = deviation * padded[:, None, None, None, :]
    both = torch.cat((centered + apart, centered - apart), 4) + mean
    return both.flatten(2, 3).to(x.dtype)


def _centered(x: Tensor, groups: int, padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Groups (B, P, G, C / G, T) less their means, padded steps zero; the means, the variances."""
    b, p, c, t = x.shape
    hidden = padded[:, None, None, None, :]
    grouped = upcast(x.reshape(b, p, groups, c // groups, t)).masked_fill(hidden, 0)
    count = (~hidden).sum(4, keepdim=True).clamp(min=1) * grouped.shape[3]
    mean = grouped.sum((3, 4), keepdim=True) / count
    centered = (grouped - mean).masked_fill(hidden, 0)
    return centered, mean, centered.square().sum((3, 4), keepdim=True) / count


def attention_pool(
    tokens: Tensor,
    query: Tensor,
    offset: Tensor,
    padded: Tensor | None = None,
    groups: int = 1,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Pools (B, P, C, T) over T by the weights softmax_T(query . tokens + offset) of each head.

    Args:
        tokens: (B, P, C, T), which are scored and pooled.
        query: (heads, C), already scaled.
        offset: (B or 1, heads, T or 1), added to the scores.
        padded: (B, T), True where a step gets no weight; if all steps of a sample are padded, they
            get equal weights.
        groups: 1, and every head pools all channels; or `heads`, and each pools a group of its own.
        dropout: rate at which weights are set to zero.

    Returns:
        The pooled channels (B, P, heads, C / groups) and the weights (B, P, heads, T).
    """
    b, p, _, t = tokens.shape
    flat = tokens.flatten(0, 1)
    scores = torch.bmm(query.to(flat.dtype).expand(flat.shape[0], -1, -1), flat)
    scores = scores.view(b, p, len(query), t) + offset[:, None]
    return scored_pool(tokens, scores, padded, groups, dropout)


def scored_pool(
    tokens: Tensor, scores: Tensor, padded: Tensor | None, groups: int, dropout: float
) -> tuple[Tensor, Tensor]:
    """`attention_pool` of scores (B, P, heads, T) that are known."""
    b, p, c, t = tokens.shape
    heads, flat = scores.shape[2], tokens.flatten(0, 1)
    if padded is not None:
        hidden = padded[:, None, None]
        scores = scores.masked_fill(hidden, -math.inf)
        scores = scores.masked_fill(hidden.all(3, keepdim=True), 0)
    weights = scores.softmax(3).to(tokens.dtype)
    if dropout:
        weights = F.dropout(weights, dropout)
    grouped = flat.reshape(b * p * groups, c // groups, t)
    pooled = torch.bmm(weights.reshape(b * p * groups, heads // groups, t), grouped.mT)
    return pooled.view(b, p, heads, c // groups), weights
