"""Attention of every node of a pyramid to its neighbors, parent and children, in O(S)."""

import torch
from torch import Tensor

from .pyramid import Pyramid, neighbors, own_neighbors, tables

_FEW = 2**19  # pairs of nodes, of all heads and samples: up to so many a matrix is faster (CPU)


def pyramid_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keep: Tensor | None,
    pyramid: Pyramid,
    lengths: Tensor | None = None,
) -> Tensor:
    """softmax(q k) v over each node's slots: k, v (B, S, H, D), q and the result (B, Q, H, D).

    Q is S, or fewer where only the first nodes ask. `keep`, (B, H, Q, slots), multiplies the
    weights, as dropout does; it gets no gradient. `lengths`, (B,), are those of the samples where
    the series are padded to the pyramid's.
    """
    if lengths is None:
        index, empty = (table[: q.shape[1]] for table in neighbors(pyramid, q.device))
        near_k, near_v = (
            t.index_select(1, index.flatten()).view(t.shape[0], *index.shape, *t.shape[2:])
            for t in (k, v)
        )  # B S slots H D
    else:
        index, empty = (t[:, : q.shape[1]] for t in own_neighbors(pyramid, lengths))
        near_k, near_v = (_picked(t, index) for t in (k, v))
        empty = empty[:, None]  # B 1 S slots
    scores = torch.einsum("bshd,bskhd->bhsk", q, near_k)
    weights = scores.masked_fill(empty, float("-inf")).softmax(-1)
    if keep is not None:
        weights = weights * keep
    return torch.einsum("bhsk,bskhd->bshd", weights, near_v)


def is_small(k: Tensor) -> bool:
    """Whether `whole_attention` is faster for these keys (B, S, H, D)."""
    eager = k.device.type == "cpu" and not torch.compiler.is_compiling()
    return eager and k.shape[:3].numel() * k.shape[1] <= _FEW


def whole_attention(q: Tensor, k: Tensor, v: Tensor, pyramid: Pyramid) -> Tensor:
    """`pyramid_attention` by the matrix of all pairs of nodes, for few nodes."""
    (blocked,) = tables(_blocked, pyramid, q.device)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # B H S D
    scores = (q @ k.mT).masked_fill(blocked[: q.shape[2]], float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2)


def _blocked(pyramid: Pyramid, device: torch.device) -> tuple[Tensor]:
    """(S, S), True where a node does not attend to another."""
    index, _ = neighbors(pyramid, device)
    blocked = torch.ones(len(index), len(index), dtype=torch.bool, device=device)
    return (blocked.scatter(1, index, 0),)


def _picked(nodes: Tensor, index: Tensor) -> Tensor:
    """(B, S, H, D) at each sample's own index (B, Q, slots): (B, Q, slots, H, D)."""
    rows = index.flatten(1)[..., None, None].expand(-1, -1, *nodes.shape[2:])
    return nodes.gather(1, rows).view(*index.shape, *nodes.shape[2:])
