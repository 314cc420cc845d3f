"""Attention of every node of a pyramid to its neighbors, parent and children, in O(S)."""

import torch
from torch import Tensor

from .pyramid import Pyramid, neighbors, own_neighbors


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


def _picked(nodes: Tensor, index: Tensor) -> Tensor:
    """(B, S, H, D) at each sample's own index (B, Q, slots): (B, Q, slots, H, D)."""
    rows = index.flatten(1)[..., None, None].expand(-1, -1, *nodes.shape[2:])
    return nodes.gather(1, rows).view(*index.shape, *nodes.shape[2:])
