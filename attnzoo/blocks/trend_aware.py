"""Temporal trend-aware attention: queries and keys are convolutions along time, values are not.

When: the shape of a series around each step matters more than its value at the step.
Paper: Learning Dynamics and Heterogeneity of Spatial-Temporal Graph Data for Traffic Forecasting,
    Guo, Lin, Wan, Li, Cong, IEEE TKDE 2021 (ASTGNN).
Code: guoshnBJTU/ASTGNN @9c2e19b, `model/ASTGNN.py`, `MultiHeadAttentionAwareTemporalContex_q1d_k1d`
    (`mode="centered"`), `_qc_kc` ("causal") and `_qc_k1d` ("causal_query").
Math: q = Q * query, k = K * key (convolutions over `kernel_size` steps, dense over channels, zeros
    beyond the ends), v = V value; y = O concat_h softmax(q_h k_h^T / sqrt(c / heads)) v_h.
    "centered": both read (kernel_size - 1) / 2 steps on either side; "causal": both read the step
    and those before it; "causal_query": queries causal, keys centered. `causal=True` also masks
    the scores of later steps; `segments` divides the series into blocks, which the attention
    crosses but the convolutions do not.
Shapes: (..., T, C) -> (..., T, C), or query (..., Tq, C) with key and value (..., Tk, C) ->
    (..., Tq, C); weights (..., heads, Tq, Tk). T runs within one node of (B, N, T, C).
Differs: `mode="causal"` by itself still attends to later steps, as the authors' class does without
    a mask; only `mode="causal", causal=True` is causal. Even under the mask, a centered key or
    query depends on (kernel_size - 1) / 2 later steps, so that the output at t depends on t + 1 at
    kernel_size=3. The authors' classes allow that leak; here `causal=True` raises an error for the
    two modes that have it, unless kernel_size=1. Masked scores are -inf here and -1e9 there, which
    float16 cannot represent. Their causal convolutions fail at kernel_size=1, and `_qc_k1d` fails
    unless its keys are segments; both work here. Even kernels would shorten the series and raise.
Cost: parameters 2 (c^2 kernel_size + c) + 2 (c^2 + c); MACs T (2 c^2 kernel_size + 2 c^2)
    + 2 T^2 c, without the kernel_size - 1 columns that the authors compute and cut off.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd.attention import attention
from ..ops import leading
from ..ops.attention import attention_weights
from ..ops.padding import Padding
from ..ops.time_conv import apply_both_in_time, apply_in_time
from ..registry import InputSize, register
from ..validation import check, messages
from ..validation.types import Count, Counts, Odd, Rate, Width

Mode = Literal["centered", "causal", "causal_query"]


def trend_aware_attention(
    q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None, causal: bool, dropout: float
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v, (N, heads, Tq, d), and the weights, (N, heads, Tq, Tk).

    q (N, heads, Tq, d), k and v (N, heads, Tk, d), `blocked` broadcast; without the weights
    `autograd.attention` does it in memory linear in T.
    """
    weights = F.dropout(attention_weights(q, k, blocked, causal).to(q.dtype), dropout)
    return weights @ v, weights


class TrendAwareAttention(nn.Module):
    """Trend-aware attention over (..., T, C), or from one series to another.

    In a batch of series of different lengths `key_padding_mask` (..., Tk) names the steps of the
    key to be ignored, True; without a key they are the query's, and their outputs are zero.

    Args:
        c: channels in and out, a multiple of `heads`.
        heads: attention heads.
        kernel_size: steps that a query or a key depends on, odd.
        mode: which of the two convolutions are causal: none ("centered"), both ("causal") or the
            queries' ("causal_query").
        causal: mask scores of later steps; with `mode="causal"` no output depends on a later step.
        segments: lengths of the blocks that the convolutions do not cross; those of queries and
            keys with `mode="centered"`, only those of keys with "causal_query".
        dropout: rate on the attention weights.

    Raises:
        ValueError: `heads` does not divide `c`, segments with `mode="causal"`, or `causal=True`
            with a mode whose centered convolutions would leak later steps.
    """

    def __init__(
        self,
        c: Width,
        *,
        heads: Count = 8,
        kernel_size: Odd = 3,
        mode: Mode = "centered",
        causal: bool = False,
        segments: Counts | None = None,
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__()
        check.divides(of="c", by="heads", c=c, heads=heads)
        _check_mode(mode, causal, segments, kernel_size)
        self.c, self.heads, self.kernel_size, self.mode = c, heads, kernel_size, mode
        self.causal, self.segments, self.dropout = causal, segments, dropout
        sides = kernel_size // 2  # causal convolutions are padded in forward
        self.query = nn.Conv1d(c, c, kernel_size, padding=sides if mode == "centered" else 0)
        self.key = nn.Conv1d(c, c, kernel_size, padding=0 if mode == "causal" else sides)
        self.value = nn.Linear(c, c)
        self.out = nn.Linear(c, c)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        check.flag(need_weights=need_weights)
        key = query if key is None else key
        value = key if value is None else value
        self._check(query, key, value)
        padded = check.padding_mask(key_padding_mask, key.shape[:-1], key)
        if padded is None:
            k = leading.fold(key)
            q, v = (k if x is key else leading.fold(x) for x in (query, value))
            y, weights = self._attend(q, k, v, None, need_weights)
        else:
            self._check_padding(query is key)
            padding = Padding.of(leading.fold(padded, keep=1))
            k, v = (padding.pack(leading.fold(x)) for x in (key, value))
            q = k if query is key else leading.fold(query)
            y, weights = self._attend(q, k, v, padding.hidden, need_weights)
            y = padding.unpack(y) if query is key else y
            weights = _unpacked(weights, padding, query is key) if need_weights else weights
        y = leading.unfold(y, query)
        return (y, leading.unfold(weights, query)) if need_weights else y

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, need_weights: bool
    ) -> tuple[Tensor, Tensor]:
        """(N, Tq, C), and the weights or nothing; keys behind a sample's last are `hidden`."""
        q, k = self._queries_and_keys(query, key)
        q, k, v = (
            torch.unflatten(t, 2, (self.heads, -1)).transpose(1, 2)
            for t in (q, k, self.value(value))
        )  # N heads T d
        blocked, weights = None, q[:0]
        if hidden is not None and not self.causal:  # a sample of padding alone has equal weights
            blocked = (hidden & ~hidden.all(1, keepdim=True))[:, None, None]
        dropout = self.dropout if self.training else 0.0
        if need_weights or dropout:
            y, weights = trend_aware_attention(q, k, v, blocked, self.causal, dropout)
        else:
            y = attention(q, k, v, blocked, self.causal)
        return self.out(y.transpose(1, 2).flatten(2)), weights

    def macs(self, size: InputSize) -> int:
        layers = (self.query, self.key, self.value, self.out)
        dense = sum(layer.weight.numel() for layer in layers)
        return size.steps * dense + 2 * size.steps**2 * self.c

    def extra_repr(self) -> str:
        options = f"mode={self.mode!r}, causal={self.causal}, segments={self.segments}"
        return f"c={self.c}, heads={self.heads}, {options}, dropout={self.dropout}"

    def _queries_and_keys(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """(N, Tq, C) and (N, Tk, C), convolved with the lengths they had."""
        before, centered = (0, 0, self.kernel_size - 1, 0), self.mode == "centered"
        k = F.pad(key, before) if self.mode == "causal" else key
        if query is key and self.mode != "causal_query":
            return apply_both_in_time(self.query, self.key, k, self.segments)
        q, cut = (query, self.segments) if centered else (F.pad(query, before), None)
        return apply_in_time(self.query, q, cut), apply_in_time(self.key, k, self.segments)

    def _check_padding(self, alone: bool) -> None:
        if self.segments is not None:
            raise ValueError(
                f"key_padding_mask with segments={messages.shown(self.segments)}, whose lengths "
                "are those of the whole series; take segments=None"
            )
        if self.causal and not alone:
            raise ValueError(
                "key_padding_mask with causal=True and a key that is not the query: without its "
                "padding the key has other steps than the query; pass the query alone"
            )

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        for name, x in (("query", query), ("key", key), ("value", value)):
            check.sequence(x, self.c, self.value, name=name)
            if x.shape[:-2] != query.shape[:-2]:
                raise ValueError(
                    f"{name} has leading axes {tuple(x.shape[:-2])}, query "
                    f"{tuple(query.shape[:-2])}; they must be the same"
                )
        steps = {"query": query.shape[-2], "key": key.shape[-2]}
        if value.shape[-2] != steps["key"]:
            raise ValueError(
                f"value has {value.shape[-2]} steps, key {steps['key']}; they must be the same"
            )
        if self.causal and steps["query"] != steps["key"]:
            raise ValueError(
                f"query has {steps['query']} steps, key {steps['key']}; causal=True needs the same "
                "steps in both, to know which are later"
            )
        if self.segments is not None:
            for name in ("query", "key") if self.mode == "centered" else ("key",):
                if steps[name] != sum(self.segments):
                    raise ValueError(
                        f"{name} has {steps[name]} steps; segments="
                        f"{messages.shown(self.segments)} make {sum(self.segments)}"
                    )


def _unpacked(weights: Tensor, padding: Padding, both: bool) -> Tensor:
    """Weights (N, heads, Tq, Tk) by the keys', and with `both` the queries', own order."""
    w = padding.unpack(weights.flatten(1, 2).mT).mT.reshape(weights.shape)
    return _unpacked(w.mT, padding, False).mT if both else w


def _check_mode(
    mode: Mode, causal: bool, segments: tuple[int, ...] | None, kernel_size: int
) -> None:
    if causal and mode != "causal" and kernel_size > 1:
        raise ValueError(
            f"causal=True with mode={mode!r} would not be causal: centered convolutions read later "
            "steps, which the mask cannot hide; take mode='causal' or kernel_size=1"
        )
    if segments is not None and mode == "causal":
        raise ValueError(
            f"segments={messages.shown(segments)} with mode='causal': causal convolutions run "
            "over the whole series; take mode='centered' or 'causal_query', or segments=None"
        )


_LINEARS = {"linears.0": "value", "linears.1": "out"}

register(
    "trend_aware",
    TrendAwareAttention,
    layout="sequence",
    family="temporal",
    example={"c": 64},
    inputs=lambda random, at, config: {"query": random(at.batch, at.steps, config["c"])},
    upstream=(
        {
            "conv1Ds_aware_temporal_context.0": "query",
            "conv1Ds_aware_temporal_context.1": "key",
            **_LINEARS,
        },
        {
            "query_conv1Ds_aware_temporal_context": "query",
            "key_conv1Ds_aware_temporal_context": "key",
            **_LINEARS,
        },
    ),
)
