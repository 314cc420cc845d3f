"""Lightweight temporal attention encoder: a learned query per head pools a pixel's time series.

When: a series of images or of vectors, such as satellite dates, is to be summed up in one.
Paper: Panoptic Segmentation of Satellite Image Time Series with Convolutional Temporal Attention
    Networks, Garnot, Landrieu, ICCV 2021, arXiv 2107.07933; "original": Lightweight Temporal
    Self-Attention for Classifying Satellite Images Time Series, AALTD 2020, arXiv 2007.00586.
Code: VSainteuf/utae-paps @987874e, `src/backbones/ltae.py`, class `LTAE2d`; `variant="original"`:
    VSainteuf/lightweight-temporal-attention-pytorch @d8f99bd, `models/ltae.py`, class `LTAE`.
Math: n = GroupNorm_heads(x) over (channels of a group, all T) of each pixel; e_t = W n_t + b + p_t,
    p_t = sinusoid of positions[t] with base `period`, the same d = d_model / heads numbers for
    every head; a_h = softmax_t(q_h . K_h e_t / sqrt(d_k)) with a learned q_h;
    y = GroupNorm_heads(MLP(concat_h sum_t a_ht e_t[h])). The code computes the same as
    a_h = softmax_t((q_h K_h W) n_t + (q_h K_h) p_t) and W[h] (sum_t a_ht n_t) + b[h] + sum a p,
    so that no tensor of (pixels, T, d_model) exists.
Shapes: (B, T, C, H, W) -> (B, mlp[-1], H, W), weights (heads, B, T, H, W);
    (..., T, C) -> (..., mlp[-1]), weights (heads, ..., T).
Differs: padded steps enter the statistics of the first GroupNorm in the authors' code and here, so
    that padding changes the output; `padding_invariant=True` leaves them out. A padded score is
    -inf here and -1000 there; in both, a sample of padded steps only gets equal weights. The
    authors' attention dropout is always 0.1; here it is min(0.1, dropout). With `mlp[-1] == heads`
    the last norm has one value per group, so that the output is its bias, as in theirs.
    "original" has LayerNorms, one over (d_model, length), so that T must equal `length`, and a
    constant table of positions; its projection cannot be folded.
Cost: parameters 2 c + (c + 1) D + (D + 1) heads d_k + heads d_k + sum_i (m_i m_{i+1} + 3 m_{i+1})
    + 2 m_last, D = d_model. Per pixel the authors run T (c D + D heads d_k + heads d_k + D)
    multiply-adds (49,472 T at the defaults with c=128) and the MLP; here they are
    T (2 c heads + D) + c D and the MLP (4,352 T + 32,768), per sample T D for the positions, and
    per call heads D c for folding the weights.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._torch import normalizes_batches
from ..autograd import needs_reference_form
from ..ops import leading
from ..ops import ltae_steps as encoding
from ..ops import pooling_over_time as over_time
from ..ops.folding import is_plain, is_projection
from ..ops.precision import upcast, upcast_dtype
from ..ops.sinusoid import sinusoid
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Count, Rate, Width


def lightweight_attention(
    x: Tensor,
    left_out: Tensor | None,
    code: Tensor | None,
    padded: Tensor | None,
    query: Tensor,
    constant: Tensor,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """a_h = softmax_t(query_h . e_t) and sum_t a_ht e_t[h] of e_t = weight n_t + shift + p_t.

    x (B, P, T, C), n its norm without the steps `left_out` (B, T); query (heads, D) is q_h K_h /
    sqrt(d_k), constant (heads,) is added to all scores; weight (D, C), or (C,) if diagonal; shift
    (D,); code (B, T, D / heads) is p_t. Returns (B, P, heads, D / heads) and a (B, P, heads, T).
    """
    heads, diagonal = len(query), weight.ndim == 1
    n = over_time.group_norm_over_time(x, heads, eps, left_out)
    offset = upcast(constant + (query * shift).sum(1))  # heads
    if code is not None:  # the same for every head
        offset = (offset + code @ upcast(query.view(heads, heads, -1).sum(1)).t())[:, None]
    query = query * weight if diagonal else query @ weight  # heads C
    y, a = over_time.attention_pool(n, query, offset, padded, heads if diagonal else 1, dropout)
    if diagonal:
        y = y * weight.view(heads, -1)
    else:
        y = torch.einsum("bphc,hdc->bphd", y, weight.view(heads, -1, n.shape[3]))
    y = y + shift.view(heads, -1) * a.sum(3, keepdim=True)  # that sum is 1 without dropout
    if code is not None:
        y = y + (a.flatten(1, 2) @ code.to(a.dtype)).view_as(y)
    return y, a


class LTAE(nn.Module):
    """Lightweight temporal attention encoder; the output has no T axis.

    Args:
        c: channels in; a multiple of `heads`.
        heads: groups of channels, each pooled by a learned query of its own.
        d_k: width of a query (the 2020 code's default was 8).
        d_model: channels after the input projection; None: no projection.
        mlp: widths of the MLP, the first `d_model` (or `c`), the last the channels out.
        period: base of the positional encoding.
        positions: whether the days of the steps, `positions=` of the call, are encoded; for
            variant="original" the list of all positions, or None or True for 1 to `length`.
        length: number of steps that variant="original" takes.
        dropout: rate after the MLP; that of the attention weights is min(0.1, dropout).
        variant: "2d", or "original" for the 2020 form.
        padding_invariant: leave padded steps out of the first norm's statistics.
        layout: "image_series" (B, T, C, H, W) or "sequence" (..., T, C).

    Raises:
        ValueError: widths that do not fit each other, or options that the variant does not have.
    """

    def __init__(
        self,
        c: Width,
        *,
        heads: Count = 16,
        d_k: Count = 4,
        d_model: Width | None = 256,
        mlp: tuple[Width, ...] = (256, 128),
        period: Count = 1000,
        positions: bool | tuple[float, ...] | None = True,
        length: Count = 24,
        dropout: Rate = 0.2,
        variant: Literal["2d", "original"] = "2d",
        padding_invariant: bool = False,
        layout: Literal["image_series", "sequence"] = "image_series",
    ) -> None:
        super().__init__()
        old, width = variant == "original", c if d_model is None else d_model
        encoding.check_widths(c, heads, d_model, mlp, old)
        encoding.check_options(variant, positions, padding_invariant, length, d_model)
        self.c, self.heads, self.d_k, self.width, self.period = c, heads, d_k, width, period
        self.variant, self.layout = variant, layout
        self.positions, self.padding_invariant = positions, padding_invariant
        self.in_norm = nn.LayerNorm(c) if old else nn.GroupNorm(heads, c)
        self.inconv = None if d_model is None else nn.Conv1d(c, width, 1)
        self.inconv_norm = nn.LayerNorm((width, length)) if old and d_model else None
        self.query = nn.Parameter(torch.empty(heads, d_k))
        self.key = nn.Linear(width, heads * d_k)
        for weight in (self.query, self.key.weight):
            nn.init.normal_(weight, 0, math.sqrt(2 / d_k))
        layers: list[nn.Module] = []
        for before, after in pairwise(mlp):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.mlp = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.out_norm = nn.LayerNorm(mlp[-1]) if old else nn.GroupNorm(heads, mlp[-1])
        if old:
            self.position_enc = encoding.position_table(positions, length, width, heads, period)
            first = 0 if isinstance(positions, tuple) else 1
            rows = length if d_model else self.position_enc.num_embeddings - first
            self.table_span = first, rows

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        check.flag(need_weights=need_weights)
        if self.layout == "image_series":
            check.image_series(x, self.c, self.query)
            series, lead, image = x.flatten(3), x.shape[:1], x.shape[3:]  # B T C P
        else:
            check.sequence(x, self.c, self.query)
            series, lead, image = leading.fold(x)[..., None], x.shape[:-2], x.shape[:0]
        steps = (*lead, series.shape[1])
        padded = check.padding_mask(key_padding_mask, steps, x)
        padded = padded if padded is None else leading.fold(padded, keep=1)  # B T
        pooled, weights = self._attend(series, positions, padded, steps)
        y = self._project(pooled.flatten(2).flatten(0, 1), x)
        y = y.view(*lead, *image, y.shape[1]).movedim(-1, len(lead))
        if not need_weights:
            return y
        weights = weights.to(x.dtype).view(*lead, *image, *weights.shape[2:]).movedim(-2, 0)
        return y, weights.movedim(-1, 1 + len(lead))  # heads B T H W

    def macs(self, size: InputSize) -> int:
        pixels = size.height * size.width if self.layout == "image_series" else 1
        step = self.key.weight.numel() + self.query.numel() + self.width
        step += 0 if self.inconv is None else self.inconv.weight.numel()
        hidden = sum(m.weight.numel() for m in self.mlp if isinstance(m, nn.Linear))
        return pixels * (size.steps * step + hidden)

    def extra_repr(self) -> str:
        return f"c={self.c}, heads={self.heads}, d_k={self.d_k}, variant={self.variant!r}"

    def _attend(
        self, x: Tensor, positions: Tensor | None, padded: Tensor | None, steps: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """The pooled steps of (B, T, C, P), and their weights."""
        norm, conv, key, heads = self.in_norm, self.inconv, self.key, self.heads
        dropout = min(0.1, self.dropout.p) if self.training else 0.0
        plain_key = is_plain(key, nn.Linear) and key.bias is not None
        if self.variant == "original":
            table = (self.position_enc, *self.table_span)
            e = encoding.encode_original(x, positions, norm, conv, self.inconv_norm, *table).mT
        else:
            stats = padded if self.padding_invariant else None
            code = self._code(positions, steps, x)
            if plain_key and is_plain(norm, nn.GroupNorm) and (conv is None or is_projection(conv)):
                queries = encoding.folded_query(self.query, key)
                shared = (*queries, *encoding.folded_norm(norm, conv), norm.eps, dropout)
                own = stats, code, padded  # of each sample
                return over_time.in_runs_of_pixels(lightweight_attention, x, own, shared)
            e = encoding.encode(x.permute(0, 3, 2, 1), norm, conv, code, heads, stats).mT
        if plain_key:
            query, constant = encoding.folded_query(self.query, key)
            return over_time.attention_pool(e, query, upcast(constant), padded, heads, dropout)
        keys = torch.unflatten(upcast(key(e)), 3, self.query.shape)  # B P T heads d_k
        scores = (keys * upcast(self.query) / math.sqrt(self.d_k)).sum(4)
        return over_time.scored_pool(e, scores, padded, heads, dropout)

    def _code(self, positions: Tensor | None, steps: tuple[int, ...], x: Tensor) -> Tensor | None:
        """The code of each step's day, (B, T, D / heads)."""
        if not self.positions:
            return None
        days = check.days(positions, steps, x, finite=not needs_reference_form(positions))
        days = leading.fold(days, keep=1).to(upcast_dtype(x.dtype))  # B T
        return sinusoid(days, self.width // self.heads, self.period)

    def _project(self, y: Tensor, x: Tensor) -> Tensor:
        for norm in filter(normalizes_batches, self.mlp):
            check.batch_norm(norm, y.shape[0], x)
        y = self.dropout(self.mlp(y))
        alone = y.shape[0] == 1  # torch's GroupNorm rejects one value per channel
        normal: Tensor = self.out_norm(y.expand(2, -1) if alone else y)
        return normal[:1] if alone else normal


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    image = (size.height, size.width) if config["layout"] == "image_series" else ()
    x = random(size.batch, size.steps, config["c"], *image)
    if config["variant"] == "original" or not config["positions"]:
        return {"x": x}
    return {"x": x, "positions": 5 * torch.arange(size.steps).expand(size.batch, -1)}


register(
    "ltae",
    LTAE,
    layout=("image_series", "sequence"),
    family="temporal",
    example={"c": 32, "heads": 4, "d_model": 64, "mlp": [64, 48], "dropout": 0.0},
    input_size=InputSize(batch=2, steps=24, height=7, width=7),
    inputs=inputs,
    upstream=(  # positional_encoder: TorchGeo keeps the denominators in its state dict
        {"attention_heads.Q": "query", "attention_heads.fc1_k": "key", "positional_encoder": None},
        encoding.UPSTREAM,
    ),
)
