"""Pyramidal attention: each node of a multi-scale pyramid attends to neighbors, parent, children.

When: series are long and have patterns at several scales: the cost is linear in the length.
Paper: Pyraformer: Low-Complexity Pyramidal Attention for Long-Range Time Series Modeling and
    Forecasting, Liu et al., ICLR 2022, OpenReview 0EXmFzUn5I.
Code: ant-research/Pyraformer @ 84af4db, `pyraformer/Pyraformer_LR.py` (Encoder), `Layers.py`,
    `SubLayers.py`.
Math: z = CSCM(x), all S nodes; `n_layers` times z = LN(z + Wo Attn(z)),
    z = LN(z + W2 gelu(W1 z)); Attn of node i is softmax_j(q_i k_j / sqrt(d_k)) v_j over the j of
    its level with |i - j| <= inner // 2, its parent and its children, `heads` heads.
Shapes: (..., T, C) -> (..., T, C) with output="finest"; (..., T, (levels) C) with "gather", each
    step with its ancestors; (..., S, C) with "pyramid". T is at least the product of `windows`.
Differs: paper and code have the same arithmetic. The authors' default computes all S x S scores
    and masks them; their TVM kernel forgets a child at many lengths. Here only the pairs that the
    mask allows are computed, for every length. Dropout is 0 by default, theirs 0.05.
Cost: with S nodes and f = d_inner: the parameters and MACs of CSCM; a layer has parameters
    c heads (2 d_k + d_v) + heads d_v c + 3 c + 2 c f + f + 3 c, MACs
    (2 S c + P) heads (d_k + d_v) + 2 S c f, where P pairs of nodes attend to each other (the
    authors compute all S^2). Fewer run with output="finest", whose last layer computes only the T
    finest nodes.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd import needs_reference_form
from ..autograd.pyramid_attention import pyramid_attention
from ..ops import pyramid_attention as reference
from ..ops.leading import fold, unfold
from ..ops.padding import Padding
from ..ops.precision import downcast
from ..ops.pyramid import Pyramid, ancestors, level_sizes, neighbors, own_ancestors
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Counts, Depth, Rate, Width
from .pyraformer_cscm import CSCM, Kind, quarter


class Pyraformer(nn.Module):
    """Coarser-scale construction and pyramidal attention on (..., T, C).

    In a batch of series of different lengths `key_padding_mask` (..., T) names the steps to be
    ignored, True: each sample has the pyramid of its own steps. Outputs of padded steps are zero.

    Args:
        c: channels in and out.
        heads: attention heads.
        d_k: width of one head's queries and keys; `c // 4` by default.
        d_v: width of one head's values; `c // 4` by default.
        windows: how many nodes of a level one node of the next summarizes, finest first.
        inner: span of neighbors within a level, the node itself included.
        bottleneck: width of the construction's convolutions; `c // 4` by default.
        d_inner: hidden width of the MLP; `c` by default.
        n_layers: layers of attention and MLP.
        cscm: kind of the construction: "bottleneck", "conv", "max" or "avg".
        output: "finest", "gather" (each step with its ancestors) or "pyramid" (all nodes).
        dropout: rate on the attention weights, after the attention and both layers of the MLP.

    Raises:
        ValueError: a width of 0; fewer steps than the product of `windows`.
    """

    def __init__(
        self,
        c: Width,
        *,
        heads: Count = 4,
        d_k: Width | None = None,
        d_v: Width | None = None,
        windows: Counts = (4, 4, 4),
        inner: Count = 3,
        bottleneck: Width | None = None,
        d_inner: Width | None = None,
        n_layers: Depth = 1,
        cscm: Kind = "bottleneck",
        output: Literal["finest", "gather", "pyramid"] = "finest",
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__()
        d_k = quarter(c, "d_k") if d_k is None else d_k
        d_v = quarter(c, "d_v") if d_v is None else d_v
        d_inner = c if d_inner is None else d_inner
        self.c, self.inner, self.output = c, inner, output
        self.width = heads * (d_k + d_v)  # of the products along the pyramid
        self.cscm = CSCM(c, windows=windows, kind=cscm, bottleneck=bottleneck)
        self.layers = nn.ModuleList(
            _Layer(c, heads, d_k, d_v, d_inner, dropout) for _ in range(n_layers)
        )

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        check.sequence(x, self.c, self.cscm)
        padded = check.padding_mask(key_padding_mask, x.shape[:-1], x)
        if padded is None:
            return unfold(self._attend(fold(x), None), x).to(x.dtype)
        padding = Padding.of(fold(padded, keep=1))
        lengths = padding.lengths()
        self._check_lengths(lengths)
        y = padding.unpack(self._attend(padding.pack(fold(x)), lengths))
        return unfold(y, x).to(x.dtype)

    def _attend(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """(N, T, C) to the output of each node; `lengths` (N,) where T is not every sample's."""
        pyramid = Pyramid.of(x.shape[1], self.cscm.windows, self.inner)
        z: Tensor = self.cscm(downcast(x, self.cscm), lengths=lengths)  # N S C
        for layer in self.layers[:-1]:
            z = layer(z, pyramid, z.shape[1], lengths)
        finest = self.output == "finest"
        z = self.layers[-1](z, pyramid, pyramid.length if finest else z.shape[1], lengths)
        if self.output != "gather":
            return z
        if lengths is not None:
            index = own_ancestors(pyramid, lengths).flatten(1)[..., None]
            return z.gather(1, index.expand(-1, -1, self.c)).view(len(z), pyramid.length, -1)
        index = ancestors(pyramid, x.device)
        shape = (z.shape[0], pyramid.length, index.shape[1] * self.c)
        return z.index_select(1, index.flatten()).view(shape)

    def _check_lengths(self, lengths: Tensor) -> None:
        if self.output == "pyramid":
            raise ValueError(
                "key_padding_mask with output='pyramid': the number of nodes depends on a sample's "
                "length; take output='finest' or 'gather'"
            )
        least = math.prod(self.cscm.windows)
        if needs_reference_form(lengths) or lengths.device.type != "cpu":  # no wait on CUDA
            return
        short = lengths[(lengths > 0) & (lengths < least)]
        if len(short):
            raise ValueError(
                f"key_padding_mask leaves a sample {int(short[0])} steps; "
                f"windows={tuple(self.cscm.windows)} need at least {least} for one node at every "
                "level: take longer series, or fewer or smaller windows"
            )

    def macs(self, size: InputSize) -> int:
        pyramid = Pyramid.of(size.steps, self.cscm.windows, self.inner)
        nodes = sum(level_sizes(size.steps, pyramid.windows))
        linear = [m.weight.numel() for m in self.layers.modules() if isinstance(m, nn.Linear)]
        of_pairs = len(self.layers) * pyramid.pairs * self.width
        return self.cscm.macs(size) + nodes * sum(linear) + of_pairs

    def extra_repr(self) -> str:
        return f"c={self.c}, inner={self.inner}, output={self.output!r}"


class PyramidAttention(nn.Module):
    """Residual multi-head attention along a pyramid, normalized afterwards."""

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

    def forward(
        self, x: Tensor, pyramid: Pyramid, wanted: int, lengths: Tensor | None = None
    ) -> Tensor:
        """The first `wanted` nodes of (N, S, C)."""
        first = x[:, :wanted]
        q, k, v = (
            layer(nodes).unflatten(-1, (self.heads, -1))
            for layer, nodes in ((self.query, first), (self.key, x), (self.value, x))
        )  # B S H D
        keep = None
        if self.training and self.dropout.p:
            keep = self.dropout(q.new_ones(x.shape[0], self.heads, wanted, pyramid.slots))
        q = q / math.sqrt(q.shape[-1])
        if lengths is None and keep is None and reference.is_small(k):
            attended = reference.whole_attention(q, k, v, pyramid)
        elif lengths is None:
            attended = pyramid_attention(q, k, v, keep, pyramid)
        else:
            attended = reference.pyramid_attention(q, k, v, keep, pyramid, lengths)
        y: Tensor = self.norm(first + self.dropout(self.out(attended.flatten(2))))
        return y


class _Layer(nn.Module):
    """Attention, then an MLP, both residual and normalized afterwards."""

    def __init__(
        self, c: int, heads: int, d_k: int, d_v: int, d_inner: int, dropout: float
    ) -> None:
        super().__init__()
        self.attention = PyramidAttention(c, heads, d_k, d_v, dropout)
        self.fc1 = nn.Linear(c, d_inner)
        self.fc2 = nn.Linear(d_inner, c)
        self.norm = nn.LayerNorm(c, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, pyramid: Pyramid, wanted: int, lengths: Tensor | None = None
    ) -> Tensor:
        x = self.attention(x, pyramid, wanted, lengths)
        hidden = self.dropout(F.gelu(self.fc1(x)))
        y: Tensor = self.norm(x + self.dropout(self.fc2(hidden)))
        return y


def pyraformer_mask(length: int, windows: Sequence[int], inner: int) -> Tensor:
    """The attention mask over a pyramid's nodes: bool (S, S), True where attention is blocked.

    Args:
        length: steps of the series, at least the product of `windows`.
        windows: how many nodes of a level one node of the next summarizes, finest first.
        inner: span of neighbors within a level, the node itself included.

    Raises:
        ValueError: a value below 1, no windows, or a series too short for one node per level.
    """
    check.positive(length=length, inner=inner)
    check.sizes(windows=windows)
    pyramid = Pyramid.of(length, windows, inner)
    level_sizes(length, pyramid.windows, subject="length={}")
    index, _ = neighbors(pyramid, torch.device("cpu"))
    return torch.ones(len(index), len(index), dtype=torch.bool).scatter_(1, index, False)


register(
    "pyraformer",
    Pyraformer,
    layout="sequence",
    family="temporal",
    example={"c": 32, "windows": (3, 2)},
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
