"""Efficient additive attention: one normalized global query, linear in the number of tokens.

When: attention on mobile hardware must be linear in the number of tokens.
Paper: SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile Vision
    Applications, Shaker, Maaz, Rasheed, Khan, Yang, Khan, ICCV 2023, arXiv 2303.15446.
Code: Amshaker/SwiftFormer @4aa6cd67, `models/swiftformer.py`, `EfficientAdditiveAttnetion` (sic).
Math: q = n(x Wq), k = n(x Wk), both of D = token_dim * heads channels and unit length;
    a = n_T(q w_g / sqrt(token_dim)) over the T tokens; g = sum_T a q;
    y = (P(g * k) + q) F, with n(v) = v / max(|v|, 1e-12) and biases in Wq, Wk, P, F.
Shapes: image (B, C, H, W) -> (B, token_dim, H, W); sequence (..., T, C) -> (..., T, token_dim).
Differs: a is signed and has unit length over the tokens; it is not a softmax and does not sum to
    one, so 1/sqrt(token_dim) cancels. `heads` only widens D; nothing happens per head. The release
    of March 2023 took a softmax over an axis of length one, so that g was the plain sum of q; it
    was corrected in July 2023 and the networks were trained again. Hugging Face's port has the old
    pooling and weights trained for it: they load here, but give other outputs. timm's port has the
    corrected pooling. The input has `c` channels, the output `token_dim`.
Cost: with D = token_dim * heads, parameters 2 (c D + D) + D + D^2 + D + D token_dim + token_dim;
    MACs T (2 c D + D + D^2 + D token_dim), T = H W for an image.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd import custom_gradient, swiftformer
from ..ops import leading
from ..ops.folding import is_plain
from ..ops.precision import autocast_disabled, upcast
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Width

_EPS = 1e-12  # the authors'


Layer = Callable[[Tensor], Tensor]


def additive_attention(
    x: Tensor,
    to_query: Layer,
    to_key: Layer,
    w_g: Tensor,
    proj: Layer,
    final: Layer,
    scale: float,
    eps: float,
) -> Tensor:
    """(B, T, C) to (B, T, token_dim) by the layers q, k, P and F, and w_g (D, 1).

    `scale` is 1 / sqrt(token_dim); a vector shorter than `eps` is divided by it.
    """
    q, k = to_query(x), to_key(x)  # B T D
    given = q.dtype
    q, k = (F.normalize(upcast(t), dim=2, eps=eps) for t in (q, k))
    with autocast_disabled(q):
        score = q @ upcast(w_g)  # B T 1
    a = F.normalize(score * scale, dim=1, eps=eps)
    g = (a * q).sum(1, keepdim=True)  # B 1 D
    return final(proj((g * k).to(given)) + q.to(given))


def efficient_additive_attention(
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
    eps: float,
) -> Tensor:
    """The same of plain linear layers, by their weights and biases."""
    pairs = ((w_q, b_q), (w_k, b_k), (w_p, b_p), (w_f, b_f))
    q, k, p, f = (partial(F.linear, weight=w, bias=b) for w, b in pairs)
    return additive_attention(x, q, k, w_g, p, f, scale, eps)


efficient_additive_attention = custom_gradient(efficient_additive_attention, swiftformer.pair)


class EfficientAdditiveAttention(nn.Module):
    """Efficient additive attention on (B, C, H, W) or (..., T, C).

    Args:
        c: channels in.
        token_dim: channels out; None for `c`.
        heads: widens queries and keys to `token_dim * heads` channels.
        layout: "image" (B, C, H, W) or "sequence" (..., T, C).
    """

    def __init__(
        self,
        c: Width,
        *,
        token_dim: Width | None = None,
        heads: Count = 1,
        layout: Literal["image", "sequence"] = "image",
    ) -> None:
        super().__init__()
        out = c if token_dim is None else token_dim
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
        q, k, p, f = layers = self.to_query, self.to_key, self.proj, self.final
        scale = self.token_dim**-0.5
        if not all(is_plain(m, nn.Linear) and m.bias is not None for m in layers):
            return additive_attention(x, q, k, self.w_g, p, f, scale, _EPS)
        weights = (q.weight, q.bias, k.weight, k.bias, self.w_g, p.weight, p.bias, f.weight, f.bias)
        return efficient_additive_attention(x, *weights, scale, _EPS)

    def macs(self, size: InputSize) -> int:
        tokens = size.height * size.width if self.layout == "image" else size.steps
        layers = (self.to_query, self.to_key, self.proj, self.final)
        return tokens * (self.w_g.numel() + sum(layer.weight.numel() for layer in layers))

    def extra_repr(self) -> str:
        return f"c={self.c}, token_dim={self.token_dim}, heads={self.heads}, layout={self.layout!r}"


register(
    "swiftformer",
    EfficientAdditiveAttention,
    layout=("image", "sequence"),
    family="token",
    example={"c": 64},
    upstream={"Proj": "proj"},  # timm and Hugging Face use the same names as here
)
