"""Self-self attention of CLIP's last block: queries attend to queries, keys to keys.

When: CLIP's dense features are to be read without training, for open-vocabulary segmentation.
Paper: SegEarth-OV: Towards Training-Free Open-Vocabulary Segmentation for Remote Sensing Images,
    Li et al., CVPR 2025, arXiv 2410.01768 ("qkv", and the removal of the global bias);
    ClearCLIP, Lan et al., ECCV 2024, arXiv 2407.12442 ("qq"); SCLIP, Wang, Mei, Yuille,
    ECCV 2024, arXiv 2312.01597 ("csa"); MaskCLIP, Zhou, Loy, Dai, ECCV 2022, arXiv 2112.01071
    ("identity"); GEM, Bousselham et al., CVPR 2024, arXiv 2312.00878 ("gem").
Code: likyoo/SegEarth-OV @3e22a969, `open_clip/transformer.py`, `VisionTransformer.custom_attn`;
    GEM: its `gem/gem_utils.py`, class `SelfSelfAttention`, a copy of WalBouss/GEM @5fa677ca.
Math: with q, k, v the projections of x and S(a, b) = softmax(a b^T / sqrt(c / heads)), per head
    y = W v and out = W_o y + b_o, where W = S(q, k) for "qk", S(q, q) for "qq", S(q, q) + S(k, k)
    for "csa", S(q, q) + S(k, k) + S(v, v) for "qkv" (sums, not means) and 1 for "identity". "gem":
    each t of v, k, q is normalized, `iters` times replaced by G(t) t and normalized again, with
    G(t) = softmax(t t^T temp); y = mean_t G(t) v, in addition to the ordinary S(q, k) v.
    Then out - global_bias out_cls, for all tokens but the first, the class token.
Shapes: (..., T, C) -> (..., T, C), the class token first; "gem" returns a pair, whose second item
    is the output of the ordinary attention.
Differs: SegEarth-OV's paper subtracts from features as `global_bias` does here, its code from
    logits (0.3), as `remove_global_bias` does. temp=None is GEM's default: the mean length of the
    tokens of each sample over sqrt(c / heads). "gem" uses GEM's joint layer for q, k and v.
Cost: parameters 4 c^2 + 4 c; MACs 4 T c^2 + (m + 1) T^2 c with m = 3 ("qkv"), 2 ("csa") or 1
    ("qq", "qk"), without the second term for "identity"; "gem":
    5 T c^2 + 2 T^2 c + 3 (2 iters + 2) T^2 c. The authors add up the (T, T) weights before the
    product with v; here each term is multiplied by v, without storing its weights: 2 m T^2 c.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd.attention import attention
from ..ops import leading
from ..ops.precision import autocast_disabled, upcast
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, NonNegative, Positive, Width

Mode = Literal["qk", "qq", "csa", "qkv", "identity", "gem"]


def self_self_attention(q: Tensor, k: Tensor, v: Tensor, mode: Mode) -> Tensor:
    """W v of (..., T, d), with the weights W of the mode."""
    if mode == "qk":
        return attention(q, k, v)
    if mode == "identity":
        return v
    kinds = {"qq": (q,), "csa": (q, k), "qkv": (q, k, v)}[mode]
    terms = [attention(t, t, v) for t in kinds]
    return sum(terms[1:], terms[0])


def gem_attention(q: Tensor, k: Tensor, v: Tensor, iters: int, temp: Tensor | float) -> Tensor:
    """mean_t G(t) v of (B, heads, T, d); `temp` for all or (B, 1, 1, 1)."""
    sharp = temp * q.shape[-1] ** 0.5  # attention() divides scores by sqrt(d)
    terms = []
    for t in (v, k, q):
        unit = _unit(t)
        for _ in range(iters):
            unit = _unit(attention((unit * sharp).to(unit.dtype), unit, unit))
        terms.append(attention((unit * sharp).to(unit.dtype), unit, v))
    return (terms[0] + terms[1] + terms[2]) / 3


def remove_global_bias(
    features: Tensor, cls: Tensor, global_bias: float = 0.3, *, normalize: bool = True
) -> Tensor:
    """SegEarth-OV's removal of the class token's share in every patch.

    Args:
        features: those of patches, (..., N, D), or with `normalize=False` their logits (..., N, Q).
        cls: those of the class token, (..., D) or (..., Q).
        global_bias: the paper's lambda; SegEarth-OV takes 0.3.
        normalize: f / |f| - lambda cls / |cls|, whose products with the text are SegEarth-OV's
            logits; False: f - lambda cls, for logits, which are linear in unit features.

    Returns:
        A tensor of the shape of `features`.
    """
    check.sequence(features, name="features")
    check.token(cls, features.shape[-1], features, name="cls")
    if normalize:
        features, cls = _unit(features), _unit(cls)
    return features - global_bias * cls.unsqueeze(-2)


class SelfSelf(nn.Module):
    """Self-self attention on (..., T, C), with the weights of an `nn.MultiheadAttention`.

    `attnzoo.from_upstream("self_self", attn.state_dict(), c=768, heads=12)` replaces the attention
    `attn` in the last block of a CLIP vision tower, without that block's residual and MLP.

    Args:
        c: channels in and out.
        heads: attention heads; must divide `c`.
        mode: which of queries, keys and values attend to each other; see Math.
        iters: rounds of "gem" before its last weights.
        temp: factor of the scores of "gem"; None: from the lengths of the tokens, as in GEM.
        global_bias: factor of the class token's output that is subtracted from the others.

    Raises:
        ValueError: `heads` does not divide `c`.
    """

    def __init__(
        self,
        c: Width,
        *,
        heads: Count = 8,
        mode: Mode = "qkv",
        iters: NonNegative = 1,
        temp: Positive | None = None,
        global_bias: float = 0.0,
    ) -> None:
        super().__init__()
        check.divides(of="c", by="heads", c=c, heads=heads)
        self.c, self.heads, self.mode = c, heads, mode
        self.iters, self.temp, self.global_bias = iters, temp, global_bias
        self.in_proj = nn.Linear(c, 3 * c)
        self.out_proj = nn.Linear(c, c)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(..., T, C); for "gem" a pair with the output of the ordinary attention."""
        check.sequence(x, self.c, self.out_proj)
        tokens = leading.fold(x)  # B T C
        parts = torch.unflatten(self.in_proj(tokens), 2, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # B heads T d
        if self.mode == "gem":
            temp = self.temp or _temperature(tokens, self.heads)
            y = gem_attention(q, k, v, self.iters, temp)
            return self._project(y, x), self._project(attention(q, k, v), x)
        return self._project(self_self_attention(q, k, v, self.mode), x)

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample, as the authors' code computes them."""
        projections, product = size.steps * self.c**2, size.steps**2 * self.c
        if self.mode == "identity":
            return 4 * projections
        if self.mode == "gem":
            return 5 * projections + (2 + 3 * (2 * self.iters + 2)) * product
        terms = {"qk": 1, "qq": 1, "csa": 2, "qkv": 3}[self.mode]
        return 4 * projections + (terms + 1) * product

    def _project(self, y: Tensor, x: Tensor) -> Tensor:
        """(B, heads, T, d) to (..., T, C), without the class token's share of the others."""
        out = leading.unfold(self.out_proj(y.transpose(1, 2).flatten(2)), x)
        if not self.global_bias:
            return out
        cls, patches = out[..., :1, :], out[..., 1:, :]
        return torch.cat((cls, patches - self.global_bias * cls), -2)

    def extra_repr(self) -> str:
        return f"c={self.c}, heads={self.heads}, mode={self.mode!r}"


def _temperature(x: Tensor, heads: int) -> Tensor:
    """GEM's default: the mean length of each sample's tokens over sqrt(d), (B, 1, 1, 1)."""
    length = torch.linalg.vector_norm(upcast(x), dim=-1).mean(-1)
    temp: Tensor = length[:, None, None, None] * (x.shape[-1] // heads) ** -0.5
    return temp


def _unit(x: Tensor) -> Tensor:
    with autocast_disabled(x):
        return F.normalize(upcast(x), dim=-1).to(x.dtype)


register(
    "self_self",
    SelfSelf,
    layout="sequence",
    family="token",
    example={"c": 64},
    upstream=(
        {"in_proj_weight": "in_proj.weight", "in_proj_bias": "in_proj.bias"},
        {"qkv": "in_proj", "proj": "out_proj"},  # GEM's
    ),
)
