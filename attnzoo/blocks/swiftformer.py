"""Efficient additive attention: one normalised global query, linear in the number of tokens.

Paper: SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile Vision
    Applications, Shaker, Maaz, Rasheed, Khan, Yang, Khan, ICCV 2023, arXiv 2303.15446.
Code: Amshaker/SwiftFormer @4aa6cd67, `models/swiftformer.py`, `EfficientAdditiveAttnetion` (sic).
Math: q = n(x Wq), k = n(x Wk), both of D = token_dim * heads channels and unit length;
    a = n_T(q w_g / sqrt(token_dim)) over the T tokens; g = sum_T a q;
    y = (P(g * k) + q) F, with n(v) = v / max(|v|, 1e-12) and biases in Wq, Wk, P, F.
Shapes: image (B, C, H, W) -> (B, token_dim, H, W); sequence (..., T, C) -> (..., T, token_dim).
Differs: a is signed and has unit length over the tokens; it is no softmax and does not sum to one,
    so 1/sqrt(token_dim) cancels. `heads` only widens D; nothing happens per head. The release of
    March 2023 took a softmax over an axis of length one, so that g was the plain sum of q;
    it was corrected in July 2023 and the networks were trained again. Hugging Face's port has the
    old pooling and weights trained for it: they load here by name and shape, but do not give its
    outputs. timm's port has the corrected one. The input's width is `c`, the output's `token_dim`.
Cost: with D = token_dim * heads, parameters 2 (c D + D) + D + D^2 + D + D token_dim + token_dim;
    MACs T (2 c D + D + D^2 + D token_dim), T = H W for an image.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd import CustomGradient
from ..ops import leading
from ..ops.precision import autocast_disabled, upcast
from ..registry import Cost, InputSize, register
from ..validation import check

_EPS = 1e-12  # the authors': a vector shorter than this is divided by it


def cost(at: InputSize, c: int, token_dim: int | None, heads: int, layout: str) -> Cost:
    out = token_dim or c
    d = out * heads
    tokens = at.height * at.width if layout == "image" else at.steps
    return Cost(
        params=2 * (c * d + d) + d + d * d + d + d * out + out,
        macs=tokens * (2 * c * d + d + d * d + d * out),
    )


@register(
    "swiftformer",
    layout=("image", "sequence"),
    family="token",
    example={"c": 64},
    cost=cost,
    upstream={"Proj": "proj"},  # timm and Hugging Face have our names
)
class EfficientAdditiveAttention(nn.Module):
    """Efficient additive attention on (B, C, H, W) or (..., T, C).

    Args:
        c: channels in.
        token_dim: channels out; None: as many as in.
        heads: widens queries and keys to `token_dim * heads` channels.
        layout: "image" (B, C, H, W) or "sequence" (..., T, C).
    """

    def __init__(
        self,
        c: int,
        *,
        token_dim: int | None = None,
        heads: int = 1,
        layout: Literal["image", "sequence"] = "image",
    ) -> None:
        super().__init__()
        out = c if token_dim is None else token_dim
        check.positive(c=c, token_dim=out, heads=heads)
        check.choice("layout", layout, ("image", "sequence"))
        self.c, self.token_dim, self.heads, self.layout = c, out, heads, layout
        width = out * heads
        self.to_query = nn.Linear(c, width)
        self.to_key = nn.Linear(c, width)
        self.w_g = nn.Parameter(torch.randn(width, 1))
        self.proj = nn.Linear(width, width)
        self.final = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "image":
            check.image(x, self.c, self.w_g)
            y = self._attend(x.flatten(2).mT)  # B HW token_dim
            return y.mT.reshape(x.shape[0], self.token_dim, *x.shape[2:])
        check.sequence(x, self.c, self.w_g)
        return leading.unfold(self._attend(leading.fold(x)), x)

    def _attend(self, x: Tensor) -> Tensor:
        # The hand-written pair sums in the dtype it is given, so half precision stays out of it.
        attend = _attend if x.dtype.itemsize >= 4 else _plain
        y: Tensor = attend(
            x,
            *(self.to_query.weight, self.to_query.bias),
            *(self.to_key.weight, self.to_key.bias),
            self.w_g,
            *(self.proj.weight, self.proj.bias),
            *(self.final.weight, self.final.bias),
            self.token_dim**-0.5,
        )
        return y

    def extra_repr(self) -> str:
        return f"c={self.c}, token_dim={self.token_dim}, heads={self.heads}, layout={self.layout!r}"


def _plain(
    x: Tensor,
    w_q: Tensor,
    b_q: Tensor,
    w_k: Tensor,
    b_k: Tensor,
    w_g: Tensor,
    w_p: Tensor,
    b_p: Tensor,
    w_f: Tensor,
    b_f: Tensor,
    scale: float,
) -> Tensor:
    q, k = F.linear(x, w_q, b_q), F.linear(x, w_k, b_k)  # B T D
    narrow = q.dtype
    q, k = _unit(q), _unit(k)
    with autocast_disabled(q):
        score = q @ upcast(w_g)  # B T 1
    a = _unit(score * scale, over=1)
    g = (a * q).sum(1, keepdim=True)  # B 1 D
    return F.linear(F.linear((g * k).to(narrow), w_p, b_p) + q.to(narrow), w_f, b_f)


def _unit(x: Tensor, over: int = -1) -> Tensor:
    return F.normalize(upcast(x), dim=over, eps=_EPS)


def _forward(x: Tensor, *args: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One product for queries and keys, made unit in place; the last two layers folded."""
    w_q, b_q, w_k, b_k, w_g, w_p, b_p, w_f, b_f, scale = args
    rows = F.linear(x, torch.cat((w_q, w_k)), torch.cat((b_q, b_k)))  # B T 2D
    halves = rows.view(*x.shape[:2], 2, len(w_g))
    lengths = torch.linalg.vector_norm(halves, dim=3, keepdim=True).clamp_min_(_EPS)
    q, k = halves.div_(lengths).unbind(2)
    score = q @ w_g * scale  # B T 1
    length = torch.linalg.vector_norm(score, dim=1, keepdim=True).clamp_min_(_EPS)
    a = score.div_(length)
    g = a.mT @ q  # B 1 D
    y = torch.addmm(b_f + w_f @ b_p, q.flatten(0, 1), w_f.t())
    y.addmm_((k * g).flatten(0, 1), (w_f @ w_p).t())
    return y.view(*x.shape[:2], len(w_f)), (rows, lengths, a, length, g)


def _backward(
    needs: Sequence[bool], args: Sequence[Any], saved: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    x, w_q, _, w_k, _, w_g, w_p, b_p, w_f, _, scale = args
    rows, lengths, a, length, g = saved
    halves, flat = rows.view(*x.shape[:2], 2, len(w_g)), grad.flatten(0, 1)  # flat: BT token_dim
    (q, k), total = halves.unbind(2), flat.sum(0)
    gated = k * g
    mixed = flat.t() @ gated.flatten(0, 1)  # token_dim D
    d_wf = (mixed @ w_p.t()).addmm_(flat.t(), q.flatten(0, 1)).addr_(total, b_p)
    d_rows = torch.empty_like(rows)
    d_halves = d_rows.view(*x.shape[:2], 2, len(w_g))
    d_q, d_k = d_halves.unbind(2)
    behind = (flat @ (w_f @ w_p)).view_as(gated)
    d_g = torch.mul(behind, k, out=gated).sum(1, keepdim=True)
    torch.mul(behind, g, out=d_k)
    d_a = q @ d_g.mT  # B T 1
    d_score = (d_a - a * (a * d_a).sum(1, keepdim=True) * (length > _EPS)) / length * scale
    torch.mm(flat, w_f, out=behind.flatten(0, 1))
    paths = torch.cat((d_g, w_g.t().expand_as(d_g)), 1)  # B 2 D: by g itself, by the score
    d_q.copy_(behind.baddbmm_(torch.cat((a, d_score), 2), paths))
    d_wg = q.flatten(0, 1).t() @ d_score.flatten(0, 1)
    along = torch.linalg.vecdot(d_halves, halves).unsqueeze(3) * (lengths > _EPS)
    d_halves.addcmul_(halves, along, value=-1).div_(lengths)
    d_flat = d_rows.flatten(0, 1)
    d_w = (d_flat.t() @ x.flatten(0, 1)).chunk(2)
    d_b = d_flat.sum(0).chunk(2)
    d_x = d_rows @ torch.cat((w_q, w_k)) if needs[0] else None
    d_p = (w_f.t() @ mixed, total @ w_f)
    return d_x, d_w[0], d_b[0], d_w[1], d_b[1], d_wg, *d_p, d_wf, total, None


_attend = CustomGradient(_plain, _forward, _backward)
