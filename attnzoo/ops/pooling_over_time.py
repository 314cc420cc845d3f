"""A pixel's series normalized and pooled over time: the shared parts of temporal encoders."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _torch
from .precision import upcast

_RUN = 64  # pixels whose series stay in a processor's cache


def in_runs_of_pixels(
    function: Callable[..., tuple[Tensor, Tensor]],
    x: Tensor,
    own: tuple[Tensor | None, ...],
    shared: tuple[Any, ...],
) -> tuple[Tensor, Tensor]:
    """`function(steps, *own, *shared)` of the steps (B, P, T, C) of series of maps (B, T, C, P).

    Its results are (B, P, ...), `own` (B, ...) or None. On the CPU it runs on a few pixels of one
    sample at a time, so that every pass over them stays in the cache.
    """
    b, t, c, pixels = x.shape
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not b:
        return function(x.permute(0, 3, 1, 2), *own, *shared)
    rows = x.flatten(1, 2)  # transposing one matrix is faster than each of a batch
    steps = (rows[0].t().contiguous()[None] if b == 1 else rows.mT.contiguous()).view(b, -1, t, c)
    if pixels <= _RUN:
        return function(steps, *own, *shared)
    results = []
    for i, sample in enumerate(torch.split(steps, 1)):
        mine = [None if each is None else each[i : i + 1] for each in own]
        runs = [function(run, *mine, *shared) for run in torch.split(sample, _RUN, 1)]
        results.append([torch.cat(parts, 1) for parts in zip(*runs, strict=True)])
    pooled, weights = (torch.cat(parts) for parts in zip(*results, strict=True))
    return pooled, weights


def group_norm_over_time(
    x: Tensor, groups: int, eps: float, padded: Tensor | None = None
) -> Tensor:
    """Normalizes (B, P, T, C) by the mean and variance over a group's channels and all steps.

    Padded steps, True in `padded` (B, T), are left out of the statistics and set to zero.
    """
    if padded is None:
        series = x.flatten(0, 1).mT  # P C T
        if _torch.transforms_active():  # torch 2.6 cannot ask for the strides of an image there
            return torch.group_norm(series.contiguous(), groups, eps=eps).mT.reshape(x.shape)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            # As a channels-last image it is not copied, but its variance is that of plain sums.
            full = x.dtype.itemsize >= 4
            series = series - _means(series, groups) if full else series.contiguous()
        y = torch.group_norm(series.unsqueeze(2), groups, eps=eps)
        return y.squeeze(2).mT.reshape(x.shape)
    centered, _, variance = _centered(x.mT, groups, padded)
    return (centered * (variance + eps).rsqrt()).flatten(2, 3).mT.to(x.dtype)


def _means(series: Tensor, groups: int) -> Tensor:
    """The mean of each group of (P, C, T) at its channels, (P, C, 1); a constant to autograd."""
    mean = torch.unflatten(series.detach().mean(2), 1, (groups, -1)).mean(2, keepdim=True)
    return mean.expand(-1, -1, series.shape[1] // groups).flatten(1).unsqueeze(2)


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
    """Pools (B, P, T, C) over T by the weights softmax_T(query . tokens + offset) of each head.

    Args:
        tokens: (B, P, T, C), which are scored and pooled.
        query: (heads, C), already scaled.
        offset: (heads,), or (B or 1, 1, T or 1, heads), added to the scores.
        padded: (B, T), True where a step gets no weight; if all steps of a sample are padded, they
            get equal weights.
        groups: 1, and every head pools all channels; or `heads`, and each pools a group of its own.
        dropout: rate at which weights are set to zero.

    Returns:
        The pooled channels (B, P, heads, C / groups) and the weights (B, P, heads, T).
    """
    scores = tokens @ query.to(tokens.dtype).t() + offset
    return scored_pool(tokens, scores, padded, groups, dropout)


def scored_pool(
    tokens: Tensor, scores: Tensor, padded: Tensor | None, groups: int, dropout: float
) -> tuple[Tensor, Tensor]:
    """`attention_pool` of scores (B, P, T, heads) that are known."""
    if padded is not None:
        hidden = padded[:, None, :, None]
        scores = scores.masked_fill(hidden, -math.inf)
        scores = scores.masked_fill(hidden.all(2, keepdim=True), 0)
    weights = scores.softmax(2).to(tokens.dtype).mT  # B P heads T
    if dropout:
        weights = F.dropout(weights, dropout)
    if groups == 1:
        return weights @ tokens, weights
    own = torch.unflatten(tokens, 3, (groups, -1)).movedim(3, 2)  # B P heads T C/heads
    return (weights.unsqueeze(3) @ own).squeeze(3), weights
