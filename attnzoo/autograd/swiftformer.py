"""Efficient additive attention: one product for queries and keys, the last two layers folded.

It sums in the dtype of its arguments; half precision therefore uses the reference form.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .custom_gradient import Pair


def forward(x: Tensor, *args: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Queries and keys of one product, normalized in place; the last two layers as one matrix."""
    w_q, b_q, w_k, b_k, w_g, w_p, b_p, w_f, b_f, scale, eps = args
    rows = F.linear(x, torch.cat((w_q, w_k)), torch.cat((b_q, b_k)))  # B T 2D
    halves = rows.view(*x.shape[:2], 2, len(w_g))
    lengths = torch.linalg.vector_norm(halves, dim=3, keepdim=True).clamp_min_(eps)
    q, k = halves.div_(lengths).unbind(2)
    score = q @ w_g * scale  # B T 1
    length = torch.linalg.vector_norm(score, dim=1, keepdim=True).clamp_min_(eps)
    a = score.div_(length)
    g = a.mT @ q  # B 1 D
    y = torch.addmm(b_f + w_f @ b_p, q.flatten(0, 1), w_f.t())
    y.addmm_((k * g).flatten(0, 1), (w_f @ w_p).t())
    return y.view(*x.shape[:2], len(w_f)), (rows, lengths, a, length, g)


def backward(
    needs: Sequence[bool], args: Sequence[Any], saved: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    x, w_q, _, w_k, _, w_g, w_p, b_p, w_f, _, scale, eps = args
    rows, lengths, a, length, g = saved
    halves, flat = rows.view(*x.shape[:2], 2, len(w_g)), grad.flatten(0, 1)  # flat: BT token_dim
    (q, k), total = halves.unbind(2), flat.sum(0)
    gated = k * g
    mixed = flat.t() @ gated.flatten(0, 1)  # token_dim D
    d_wf = (mixed @ w_p.t()).addmm_(flat.t(), q.flatten(0, 1)).addr_(total, b_p)
    d_rows = torch.empty_like(rows)
    d_halves = d_rows.view(*x.shape[:2], 2, len(w_g))
    d_q, d_k = d_halves.unbind(2)
    upstream = (flat @ (w_f @ w_p)).view_as(gated)  # gradient of the gated keys
    d_g = torch.mul(upstream, k, out=gated).sum(1, keepdim=True)
    torch.mul(upstream, g, out=d_k)
    d_a = q @ d_g.mT  # B T 1
    d_score = (d_a - a * (a * d_a).sum(1, keepdim=True) * (length > eps)) / length * scale
    torch.mm(flat, w_f, out=upstream.flatten(0, 1))  # gradient of the queries in the last layer
    paths = torch.cat((d_g, w_g.t().expand_as(d_g)), 1)  # B 2 D: through g, through the score
    d_q.copy_(upstream.baddbmm_(torch.cat((a, d_score), 2), paths))
    d_wg = q.flatten(0, 1).t() @ d_score.flatten(0, 1)
    radial = torch.linalg.vecdot(d_halves, halves).unsqueeze(3) * (lengths > eps)
    d_halves.addcmul_(halves, radial, value=-1).div_(lengths)
    d_flat = d_rows.flatten(0, 1)
    d_w = (d_flat.t() @ x.flatten(0, 1)).chunk(2)
    d_b = d_flat.sum(0).chunk(2)
    d_x = d_rows @ torch.cat((w_q, w_k)) if needs[0] else None
    d_p = (w_f.t() @ mixed, total @ w_f)
    return d_x, d_w[0], d_b[0], d_w[1], d_b[1], d_wg, *d_p, d_wf, total, None, None


pair = Pair(forward, backward, half=False)
