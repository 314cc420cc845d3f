"""Causal temporal attention in windows: each step attends to earlier steps of its own window.

When: a forecaster must not see later steps, and attention within windows of the series is enough.
Paper: AirFormer: Predicting Nationwide Air Quality in China with Transformers, Liang et al.,
    AAAI 2023, arXiv 2211.15979.
Code: yoshall/AirFormer @ef7d393, `src/models/airformer.py`, CT_MSA and TemporalAttention.
Math: x0 = x + positions[:T]; `depth` times x = x + Attn(x), x = x + W2 gelu(W1 LN(x)); in Attn step
    t attends to steps s of its window, floor(t / window) = floor(s / window), s <= t where
    `causal`: softmax(q_t k_s (c / heads)^-1/2) v_s, all heads joined by a linear layer.
Shapes: (..., T, C) -> (..., T, C), with T <= `length`; `attention_only` takes any T.
Differs: the paper's figure normalizes before the attention, the code does not; the paper's sum
    ends at t - 1, the code's at t. We follow the code. If `window` does not divide T, the authors'
    windows span two samples or fail; here the last window is shorter. Their window=0 fails if
    causal; here it covers all of T.
Cost: with W = window (T where 0), m = mlp_dim, n = ceil(T / W): parameters length c +
    depth (4 c^2 + 4 c + 2 c m + m); MACs depth (4 T c^2 + 2 n W^2 c + 2 T c m); `qkv_bias` adds
    3 c a layer; `attention_only` has neither positions, LayerNorm nor MLP: 4 c^2 + c.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.leading import fold, unfold
from ..ops.padding import Padding
from ..ops.precision import autocast_disabled, downcast, upcast, upcast_dtype
from ..ops.softmax import is_slow
from ..ops.weight_decay import exempt
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Depth, NonNegative, Rate, Width


def windowed_attention(
    qkv: Tensor, heads: int, window: int, causal: bool, hidden: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v within windows of time: (N, T, 3C) to (N, T, C).

    The last window may be shorter; half precision has its scores in float32. No step before them
    sees the steps at a sample's end that are True in `hidden` (N, T).
    """
    n, steps, width = qkv.shape
    # Softmax over few steps is slow: a row then holds windows, hidden from one another.
    span = min(steps, window * (32 // window)) if is_slow(qkv, window) else window
    count = (steps + span - 1) // span  # ONNX divides negative numbers towards zero
    step = torch.arange(count * span, device=qkv.device)
    ragged = torch.compiler.is_compiling() or steps % span  # a compiled graph serves any T
    last = step.clamp(max=steps - 1)
    if ragged:  # the last step, repeated, fills the last row
        qkv = qkv.index_select(1, last)
    row = step[:span]
    blocked = row.div(window, rounding_mode="floor").ne((row // window)[:, None])  # span span
    if causal:  # the repeated steps, too, which come after every other
        blocked = blocked | (row > row[:, None])
    elif hidden is not None or ragged:  # these see all, since a softmax of nothing would be nan
        unseen = (step >= steps).expand(n, -1)  # N MW
        unseen = unseen if hidden is None else hidden.index_select(1, last) | unseen
        blocked = blocked | (unseen.view(-1, 1, span) & ~unseen.view(-1, span, 1))
    y = _attend_in_rows(qkv.view(n * count, span, width), heads, blocked)
    y = y.view(n, count * span, width // 3)
    return y.index_select(1, step[:steps]) if ragged else y


def _attend_in_rows(qkv: Tensor, heads: int, blocked: Tensor) -> Tensor:
    """Attention within rows, (N, T, 3C) to (N, T, C), except for pairs True in `blocked`."""
    d, zero = qkv.shape[2] // 3 // heads, qkv.new_zeros((), dtype=upcast_dtype(qkv.dtype))
    bias = zero.masked_fill(blocked, float("-inf"))
    if qkv.device.type == "cpu" and not torch.compiler.is_compiling():
        parts = torch.split(qkv, d, 2)  # a head at a time, which copies nothing
        qkv_of = zip(parts[:heads], parts[heads : 2 * heads], parts[2 * heads :], strict=True)
        return torch.cat([_attend(*each, bias) for each in qkv_of], 2)
    q, k, v = torch.unflatten(qkv, 2, (3, heads, d)).permute(2, 0, 3, 1, 4)  # N heads T d
    return _attend(q, k, v, bias.unsqueeze(-3)).transpose(1, 2).flatten(2)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k, scale = upcast(q), upcast(k), q.shape[-1] ** -0.5
    with autocast_disabled(q):  # half-precision products may overflow
        one = q.ndim == 3  # head
        scores = torch.baddbmm(bias, q, k.mT, alpha=scale) if one else q * scale @ k.mT + bias
    return scores.softmax(-1).to(v.dtype) @ v


class CTMSA(nn.Module):
    """Causal temporal multi-head self-attention on (..., T, C).

    In a batch of series of different lengths `key_padding_mask` (..., T) names the steps to be
    ignored, True: the others have the positions and windows of a series without them; the outputs
    of padded steps are zero.

    Args:
        c: channels in and out.
        heads: attention heads; must divide `c`.
        window: steps of a window; 0 for all of T.
        causal: whether steps attend only to themselves and earlier ones.
        length: the largest number of steps; each has a learned position.
        mlp_dim: hidden width of the MLP; `2 * c` by default.
        depth: layers of attention and MLP; the positions are added once.
        dropout: rate after the attention and after both layers of the MLP.
        attention_only: only the attention, without positions, residual and MLP.
        qkv_bias: whether queries, keys and values have biases.

    Raises:
        ValueError: `heads` does not divide `c`, a negative `window`, `depth` above 1 with
            `attention_only`, or T above `length`.
    """

    def __init__(
        self,
        c: Width,
        *,
        heads: Count = 2,
        window: NonNegative = 0,
        causal: bool = True,
        length: Count = 24,
        mlp_dim: Width | None = None,
        depth: Depth = 1,
        dropout: Rate = 0.0,
        attention_only: bool = False,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        check.divides(of="c", by="heads", c=c, heads=heads)
        if attention_only and depth > 1:
            raise ValueError(
                f"depth={depth} must be 1 with attention_only=True, which has no layers to stack"
            )
        self.c, self.length, self.attention_only = c, length, attention_only
        config = (c, heads, window, causal, dropout, qkv_bias)
        if attention_only:
            self.attention = TemporalAttention(*config)
            return
        self.positions = nn.Parameter(torch.randn(length, c))
        exempt(self, "positions")
        hidden = 2 * c if mlp_dim is None else mlp_dim
        self.layers = nn.ModuleList(_Layer(*config, hidden) for _ in range(depth))

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        check.sequence(x, self.c, self.attention if self.attention_only else self.positions)
        padded = check.padding_mask(key_padding_mask, x.shape[:-1], x)
        if padded is None:
            return unfold(self._attend(fold(x), None), x)
        padding = Padding.of(fold(padded, keep=1))
        y = padding.unpack(self._attend(padding.pack(fold(x)), padding.hidden))
        return unfold(y, x)

    def _attend(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """(N, T, C) to the same; a step hidden in (N, T) is seen by none before it."""
        if self.attention_only:
            attended: Tensor = self.attention(x, hidden)
            return attended
        if x.shape[-2] > self.length:
            raise ValueError(
                f"x has {x.shape[-2]} steps (axis -2 of shape {tuple(x.shape)}); the block has "
                f"positions for length={self.length}: build it with length={x.shape[-2]}"
            )
        y = downcast(x, self.positions) + self.positions[: x.shape[-2]]
        for layer in self.layers:
            y = layer(y, hidden)
        return y.to(x.dtype)

    def macs(self, size: InputSize) -> int:
        if self.attention_only:
            return self.attention.macs(size.steps)
        return sum(cast(_Layer, layer).macs(size.steps) for layer in self.layers)

    def extra_repr(self) -> str:
        return f"c={self.c}" + (", attention_only=True" if self.attention_only else "")


class TemporalAttention(nn.Module):
    """Multi-head self-attention within consecutive windows of (N, T, C)."""

    def __init__(
        self, c: int, heads: int, window: int, causal: bool, dropout: float, qkv_bias: bool
    ) -> None:
        super().__init__()
        self.heads, self.window, self.causal = heads, window, causal
        self.qkv = nn.Linear(c, 3 * c, bias=qkv_bias)
        self.proj = nn.Linear(c, c)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        window = self.window or x.shape[-2]
        if not torch.compiler.is_compiling():  # a graph of dynamic length needs a fixed window
            window = min(window, x.shape[-2])
        attended = windowed_attention(self.qkv(x), self.heads, window, self.causal, hidden)
        y: Tensor = self.dropout(self.proj(attended))
        return y

    def macs(self, steps: int) -> int:
        window = min(self.window or steps, steps)
        pairs = -(-steps // window) * window * window
        dense = self.qkv.weight.numel() + self.proj.weight.numel()
        return steps * dense + 2 * pairs * self.proj.in_features

    def extra_repr(self) -> str:
        return f"heads={self.heads}, window={self.window}, causal={self.causal}"


class _Layer(nn.Module):
    """x + attention, then x + MLP of the normalized x; the attention's input is not normalized."""

    def __init__(
        self,
        c: int,
        heads: int,
        window: int,
        causal: bool,
        dropout: float,
        qkv_bias: bool,
        mlp_dim: int,
    ) -> None:
        super().__init__()
        self.attention = TemporalAttention(c, heads, window, causal, dropout, qkv_bias)
        self.norm = nn.LayerNorm(c)
        self.fc1 = nn.Linear(c, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, c)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = x + self.attention(x, hidden)
        hidden = self.dropout(F.gelu(self.fc1(self.norm(x))))
        y: Tensor = x + self.dropout(self.fc2(hidden))
        return y

    def macs(self, steps: int) -> int:
        mlp = self.fc1.weight.numel() + self.fc2.weight.numel()
        return self.attention.macs(steps) + steps * mlp


register(
    "ct_msa",
    CTMSA,
    layout="sequence",
    family="temporal",
    example={"c": 32, "window": 6},
    upstream=(
        {
            "pos_embedding": "positions",
            "layers.*.0": "layers.*.attention",
            "layers.*.1.norm": "layers.*.norm",
            "layers.*.1.fn.net.0": "layers.*.fc1",
            "layers.*.1.fn.net.3": "layers.*.fc2",
        },
        {"qkv": "attention.qkv", "proj": "attention.proj"},
    ),
)
