"""Attention of every node of a pyramid to its neighbors, parent and children, in O(S)."""

import torch
from torch import Tensor

from .pyramid import Pyramid, neighbors


def pyramid_attention(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, pyramid: Pyramid
) -> Tensor:
    """softmax(q k) v over each node's slots: k, v (B, S, H, D), q and the result (B, Q, H, D).

    Q is S, or less if only the first nodes have queries. `keep`, (B, H, Q, slots), multiplies the
    weights, as dropout does; it gets no gradient.
    """
    index, empty = (table[: q.shape[1]] for table in neighbors(pyramid, q.device))
    near_k, near_v = (
        t.index_select(1, index.flatten()).view(t.shape[0], *index.shape, *t.shape[2:])
        for t in (k, v)
    )  # B S slots H D
    scores = torch.einsum("bshd,bskhd->bhsk", q, near_k)
    weights = scores.masked_fill(empty, float("-inf")).softmax(-1)
    if keep is not None:
        weights = weights * keep
    return torch.einsum("bhsk,bskhd->bshd", weights, near_v)
