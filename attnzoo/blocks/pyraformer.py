"""Pyramidal attention: each node of a multi-scale pyramid sees neighbours, parent and children.

Paper: Pyraformer: Low-Complexity Pyramidal Attention for Long-Range Time Series Modeling and
    Forecasting, Liu et al., ICLR 2022, OpenReview 0EXmFzUn5I.
Code: ant-research/Pyraformer @ 84af4db, `pyraformer/Pyraformer_LR.py` (Encoder), `Layers.py`,
    `SubLayers.py`.
Math: z = CSCM(x), all S nodes; `n_layers` times z = LN(z + Wo Attn(z)),
    z = LN(z + W2 gelu(W1 z)); Attn of node i is softmax_j(q_i k_j / sqrt(d_k)) v_j over the j of
    its level with |i - j| <= inner // 2, its parent and its children, `heads` heads.
Shapes: (..., T, C) -> (..., T, C) with output="finest"; (..., T, (levels) C) with "gather", each
    step beside its ancestors; (..., S, C) with "pyramid". T of at least the product of `windows`.
Differs: paper and code have the same arithmetic. The authors' default computes all S x S scores
    and masks them; their TVM kernel forgets a child at many lengths. Here only the pairs that the
    mask allows are computed, for every length. Dropout is 0 by default, theirs 0.05.
Cost: with S nodes and f = d_inner: the parameters and MACs of CSCM; a layer has parameters
    c heads (2 d_k + d_v) + heads d_v c + 3 c + 2 c f + f + 3 c, MACs
    (2 S c + P) heads (d_k + d_v) + 2 S c f, where P pairs of nodes may attend to each other: the
    useful ones, the authors compute all S^2. What runs here is
    (S c + Q c + Q K) heads (d_k + d_v) + 2 Q c f with K = 2 (inner // 2) + 1 + 2 max(windows) slots
    a node; Q is S, but T in the last layer before output="finest", which nothing else of that layer
    is needed for.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.leading import fold, unfold
from ..ops.pyramid import Pyramid, ancestors, level_sizes, neighbours
from ..ops.pyramid_attention import pyramid_attention
from ..registry import Cost, InputSize, register
from ..validation import check
from . import pyraformer_cscm as cscm_file

Output = Literal["finest", "gather", "pyramid"]


def pyraformer_mask(length: int, windows: Sequence[int], inner: int) -> Tensor:
    """Which pairs of a pyramid's nodes do not attend to each other: bool (S, S), True = blocked.

    Args:
        length: steps of the series, at least the product of `windows`.
        windows: nodes of a level that one node of the next stands for, finest first.
        inner: span of neighbours within a level, the node itself included.

    Raises:
        ValueError: a value below 1, no windows, or a series too short for one node a level.
    """
    check.positive(length=length, inner=inner)
    pyramid = Pyramid.over(length, cscm_file.checked(windows), inner)
    level_sizes(length, pyramid.windows, shown="length={}")
    index, _ = neighbours(pyramid, torch.device("cpu"))
    return torch.ones(len(index), len(index), dtype=torch.bool).scatter_(1, index, False)


def cost(
    at: InputSize,
    c: int,
    heads: int,
    d_k: int | None,
    d_v: int | None,
    windows: tuple[int, ...],
    inner: int,
    bottleneck: int | None,
    d_inner: int | None,
    n_layers: int,
    cscm: cscm_file.Kind,
    output: Output,
    dropout: float,
) -> Cost:
    params, macs, _ = cscm_file.cost(at, c, windows, cscm, bottleneck)
    k, v, f = heads * (d_k or c // 4), heads * (d_v or c // 4), d_inner or c
    sizes = level_sizes(at.steps, windows)
    nodes, reach = sum(sizes), [(size, min(inner // 2, size - 1)) for size in sizes]
    pairs = sum((2 * a + 1) * size - a * (a + 1) for size, a in reach) + 2 * (nodes - sizes[-1])
    asking = n_layers * nodes - (output == "finest") * (nodes - at.steps)
    slots = Pyramid.over(at.steps, windows, inner).slots
    return Cost(
        params=params + n_layers * (c * (2 * k + 2 * v) + 2 * c * f + f + 6 * c),
        macs=macs + n_layers * ((2 * nodes * c + pairs) * (k + v) + 2 * nodes * c * f),
        macs_executed=macs
        + n_layers * nodes * c * (k + v)
        + asking * ((c + slots) * (k + v) + 2 * c * f),
    )


@register(
    "pyraformer",
    layout="sequence",
    family="temporal",
    example={"c": 32, "windows": (3, 2)},
    cost=cost,
    upstream={
        "conv_layers.conv_layers.*.downConv": "cscm.levels.*.conv",
        "conv_layers.conv_layers": "cscm.levels",
        "conv_layers": "cscm",
        "layers.*.slf_attn.w_qs": "layers.*.attention.query",
        "layers.*.slf_attn.w_ks": "layers.*.attention.key",
        "layers.*.slf_attn.w_vs": "layers.*.attention.value",
        "layers.*.slf_attn.fc": "layers.*.attention.out",
        "layers.*.slf_attn.layer_norm": "layers.*.attention.norm",
        "layers.*.pos_ffn.w_1": "layers.*.fc1",
        "layers.*.pos_ffn.w_2": "layers.*.fc2",
        "layers.*.pos_ffn.layer_norm": "layers.*.norm",
        "enc_embedding": None,  # comes before the block, in their encoder's state dict
    },
)
class Pyraformer(nn.Module):
    """Coarser-scale construction and pyramidal attention on (..., T, C).

    Args:
        c: channels in and out.
        heads: attention heads.
        d_k: width of one head's queries and keys; `c // 4` by default.
        d_v: width of one head's values; `c // 4` by default.
        windows: how many nodes of a level one node of the next stands for, finest first.
        inner: span of neighbours within a level, the node itself included.
        bottleneck: width of the construction's convolutions; `c // 4` by default.
        d_inner: hidden width of the MLP; `c` by default.
        n_layers: layers of attention and MLP.
        cscm: kind of the construction: "bottleneck", "conv", "max" or "avg".
        output: "finest", "gather" (each step beside its ancestors) or "pyramid" (all nodes).
        dropout: rate on the attention's weights, behind it and behind both layers of the MLP.

    Raises:
        ValueError: a width of no channels; fewer steps than the product of `windows`.
    """

    def __init__(
        self,
        c: int,
        *,
        heads: int = 4,
        d_k: int | None = None,
        d_v: int | None = None,
        windows: tuple[int, ...] = (4, 4, 4),
        inner: int = 3,
        bottleneck: int | None = None,
        d_inner: int | None = None,
        n_layers: int = 1,
        cscm: cscm_file.Kind = "bottleneck",
        output: Output = "finest",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        d_k = cscm_file.quarter(c, "d_k") if d_k is None else d_k
        d_v = cscm_file.quarter(c, "d_v") if d_v is None else d_v
        d_inner = c if d_inner is None else d_inner
        check.positive(heads=heads, d_k=d_k, d_v=d_v, inner=inner, d_inner=d_inner)
        check.layers(n_layers=n_layers)
        check.fraction(dropout=dropout)
        self.c, self.inner, self.output = c, inner, output
        self.cscm = cscm_file.CSCM(c, windows=windows, kind=cscm, bottleneck=bottleneck)
        self.layers = nn.ModuleList(
            _Layer(c, heads, d_k, d_v, d_inner, dropout) for _ in range(n_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        check.sequence(x, self.c, self.cscm.norm.weight)
        pyramid = Pyramid.over(x.shape[-2], self.cscm.windows, self.inner)
        z = self.cscm(fold(x))  # N S C
        for layer in self.layers[:-1]:
            z = layer(z, pyramid, z.shape[1])
        finest = self.output == "finest"
        z = self.layers[-1](z, pyramid, pyramid.length if finest else z.shape[1])
        if self.output == "gather":
            index = ancestors(pyramid, x.device)
            shape = (z.shape[0], pyramid.length, index.shape[1] * self.c)
            z = z.index_select(1, index.flatten()).view(shape)
        return unfold(z, x)

    def extra_repr(self) -> str:
        return f"c={self.c}, inner={self.inner}, output={self.output!r}"


class PyramidAttention(nn.Module):
    """Residual multi-head attention along a pyramid, normalised afterwards."""

    def __init__(self, c: int, heads: int, d_k: int, d_v: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(c, heads * d_k, bias=False)
        self.key = nn.Linear(c, heads * d_k, bias=False)
        self.value = nn.Linear(c, heads * d_v, bias=False)
        self.out = nn.Linear(heads * d_v, c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor, pyramid: Pyramid, wanted: int) -> Tensor:
        """The first `wanted` nodes of (N, S, C)."""
        first = x[:, :wanted]
        q, k, v = (
            layer(nodes).unflatten(-1, (self.heads, -1))
            for layer, nodes in ((self.query, first), (self.key, x), (self.value, x))
        )  # B S H D
        keep = None
        if self.training and self.dropout.p:
            keep = self.dropout(q.new_ones(x.shape[0], self.heads, wanted, pyramid.slots))
        attended = pyramid_attention(q / math.sqrt(q.shape[-1]), k, v, keep, pyramid)
        y: Tensor = self.norm(first + self.dropout(self.out(attended.flatten(2))))
        return y


class _Layer(nn.Module):
    """Attention, then an MLP, both residual and normalised afterwards."""

    def __init__(
        self, c: int, heads: int, d_k: int, d_v: int, d_inner: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = PyramidAttention(c, heads, d_k, d_v, dropout)
        self.fc1 = nn.Linear(c, d_inner)
        self.fc2 = nn.Linear(d_inner, c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, pyramid: Pyramid, wanted: int) -> Tensor:
        x = self.attention(x, pyramid, wanted)
        hidden = self.dropout(F.gelu(self.fc1(x)))
        y: Tensor = self.norm(x + self.dropout(self.fc2(hidden)))
        return y
