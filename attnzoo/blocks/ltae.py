"""Lightweight temporal attention encoder: one learned query a head pools a pixel's time series.

Paper: Panoptic Segmentation of Satellite Image Time Series with Convolutional Temporal Attention
    Networks, Garnot, Landrieu, ICCV 2021, arXiv 2107.07933; the first form: Lightweight Temporal
    Self-Attention for Classifying Satellite Images Time Series, the same, AALTD 2020,
    arXiv 2007.00586.
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
    that padding moves the output; `padding_invariant=True` leaves them out. A padded score is
    -inf here and -1000 there, equal unless a true score is as low; a row with all steps padded has
    equal weights in both. The authors' attention dropout is 0.1 whatever `dropout` says; here it is
    min(0.1, dropout). `mlp[-1] == heads` makes the last norm's groups one value each: the output
    is then that norm's bias, as it is theirs. The first form has LayerNorms instead, one of them
    over (d_model, length), so that T must equal `length`, and a frozen table of positions; its
    projection cannot be folded, and its d_k was 8.
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
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd import needs_reference_form
from ..ops import leading
from ..registry import Cost, Inputs, InputSize, Random, register
from ..validation import check, messages

Variant = Literal["2d", "original"]


def cost(
    at: InputSize,
    c: int,
    heads: int,
    d_k: int,
    d_model: int | None,
    mlp: tuple[int, ...],
    period: int,
    positions: bool | tuple[float, ...] | None,
    length: int,
    dropout: float,
    variant: Variant,
    padding_invariant: bool,
    layout: str,
) -> Cost:
    original, folded = variant == "original", variant == "2d" and d_model is not None
    width = d_model or c
    layers = list(pairwise(mlp))
    params = 2 * c + (width + 2) * heads * d_k + 2 * mlp[-1]
    params += sum(m * n + 3 * n for m, n in layers)
    if d_model is not None:
        params += (c + 1) * width + original * 2 * width * length
    if original:
        rows = len(positions) if isinstance(positions, tuple) else length + 1
        params += rows * (width // heads) * heads
    pixels = at.height * at.width if layout == "image_series" else 1
    coded = not original and positions is True
    per_step = heads * (c if folded else width) + (heads * c if folded else width)
    per_step += (c * width if original and d_model else 0) + coded * width
    hidden = sum(m * n for m, n in layers)
    executed = pixels * (at.steps * per_step + folded * c * width + hidden)
    theirs = (d_model is not None) * c * width + (width + 1) * heads * d_k + width
    return Cost(
        params=params,
        macs=pixels * (at.steps * theirs + hidden),
        macs_executed=executed + coded * at.steps * width + folded * heads * width * c,
    )


def inputs(random: Random, at: InputSize, config: Mapping[str, Any]) -> Inputs:
    series = config["layout"] == "image_series"
    shape = (at.batch, at.steps, config["c"]) + ((at.height, at.width) if series else ())
    days = 5 * torch.arange(at.steps).expand(at.batch, -1)
    coded = config["variant"] == "2d" and config["positions"]
    return {"x": random(*shape), **({"positions": days} if coded else {})}


@register(
    "ltae",
    layout=("image_series", "sequence"),
    family="temporal",
    example={"c": 32, "heads": 4, "d_model": 64, "mlp": [64, 48], "dropout": 0.0},
    input_size=InputSize(batch=2, steps=24, height=7, width=7),
    inputs=inputs,
    cost=cost,
    upstream=(
        {
            "attention_heads.Q": "query",
            "attention_heads.fc1_k": "key",
            "positional_encoder": None,  # TorchGeo keeps the denominators in its state dict
        },
        {
            "attention_heads.Q": "query",
            "attention_heads.fc1_k": "key",
            "inlayernorm": "in_norm",
            "outlayernorm": "out_norm",
            "inconv.0": "inconv",
            "inconv.1": "inconv_norm",
        },
    ),
)
class LTAE(nn.Module):
    """Lightweight temporal attention encoder; T collapses.

    Args:
        c: channels in; a multiple of `heads`.
        heads: groups of channels, each pooled by a learned query of its own.
        d_k: width of a query (the 2020 code's default was 8).
        d_model: channels after the input projection, a multiple of `heads`; None: no projection.
        mlp: widths of the MLP, the first `d_model` (or `c`), the last the channels out, a multiple
            of `heads`.
        period: base of the positional encoding.
        positions: whether the days of the steps are encoded, which the call then needs
            (`positions=` of the call is ignored otherwise); for `variant="original"` None or True
            (the codes of 1 to `length`) or the list of the positions of all steps.
        length: number of steps that `variant="original"` takes.
        dropout: after the MLP; the weights' own dropout is min(0.1, dropout).
        variant: "2d", or "original" for the 2020 form.
        padding_invariant: leave padded steps out of the first norm's statistics.
        layout: "image_series" for (B, T, C, H, W) or "sequence" for (..., T, C).

    Raises:
        ValueError: widths that `heads` does not divide, `mlp` that does not start at `d_model`, or
            options that the variant does not have.
    """

    def __init__(
        self,
        c: int,
        *,
        heads: int = 16,
        d_k: int = 4,
        d_model: int | None = 256,
        mlp: tuple[int, ...] = (256, 128),
        period: int = 1000,
        positions: bool | tuple[float, ...] | None = True,
        length: int = 24,
        dropout: float = 0.2,
        variant: Variant = "2d",
        padding_invariant: bool = False,
        layout: Literal["image_series", "sequence"] = "image_series",
    ) -> None:
        super().__init__()
        check.positive(c=c, heads=heads, d_k=d_k, period=period, length=length)
        check.fraction(dropout=dropout)
        width = c if d_model is None else d_model
        _check_widths(c, heads, width, d_model, mlp, variant)
        _check_options(variant, positions, padding_invariant, length, d_model)
        original = variant == "original"
        self.c, self.heads, self.d_k, self.width, self.period = c, heads, d_k, width, period
        self.length, self.variant, self.layout = length, variant, layout
        self.positions, self.padding_invariant = positions, padding_invariant
        self.in_norm = nn.LayerNorm(c) if original else nn.GroupNorm(heads, c)
        self.inconv = None if d_model is None else nn.Conv1d(c, width, 1)
        self.inconv_norm = (
            nn.LayerNorm((width, length)) if original and d_model is not None else None
        )
        self.query = nn.Parameter(torch.empty(heads, d_k))
        self.key = nn.Linear(width, heads * d_k)
        for weight in (self.query, self.key.weight):
            nn.init.normal_(weight, 0, math.sqrt(2 / d_k))
        layers: list[nn.Module] = []
        for before, after in pairwise(mlp):
            layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
        self.mlp = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.out_norm = nn.LayerNorm(mlp[-1]) if original else nn.GroupNorm(heads, mlp[-1])
        if original:
            days = positions if isinstance(positions, tuple) else tuple(range(length + 1))
            code = _sinusoid(torch.tensor(days, dtype=torch.float64), width // heads, period)
            table = code.float().repeat(1, heads).to(torch.get_default_dtype())
            self.position_enc = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
            self.position_enc.weight.requires_grad_(False)

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
            flat, lead, image = x.flatten(3), x.shape[:1], x.shape[3:]  # B T C P
        else:
            check.sequence(x, self.c, self.query)
            flat, lead, image = leading.fold(x)[..., None], x.shape[:-2], x.shape[:0]
        steps = (*lead, flat.shape[1])
        code, padded = self._code(positions, steps, x), _padded(key_padding_mask, steps, x)
        pooled, weights = self._attend(flat, code, padded)  # B P heads d, B P heads T
        y = self._project(pooled.flatten(2).flatten(0, 1), x)
        y = y.view(*lead, *image, y.shape[1]).movedim(-1, len(lead))
        if not need_weights:
            return y
        weights = weights.to(x.dtype).view(*lead, *image, *weights.shape[2:]).movedim(-2, 0)
        return y, weights.movedim(-1, 1 + len(lead))  # heads B T H W

    def extra_repr(self) -> str:
        return f"c={self.c}, heads={self.heads}, d_k={self.d_k}, variant={self.variant!r}"

    def _code(self, positions: Tensor | None, steps: tuple[int, ...], x: Tensor) -> Tensor | None:
        """The codes (B, T, D / heads) of the days of all steps, where the block encodes them."""
        if self.variant == "original":
            self._check_length(steps[-1], positions)
            return None
        if not self.positions:
            return None
        if positions is None:
            raise ValueError(
                "positions is missing: pass the days of the steps, positions=tensor of shape "
                f"{steps}, or build with positions=False"
            )
        days = leading.fold(_per_step("positions", positions, steps, x), keep=1)
        if days.dtype == torch.bool or days.is_complex():
            raise TypeError(f"positions is {days.dtype}; it must be real numbers, the steps' days")
        watched = days.device.type == "cpu" and not needs_reference_form(days)  # no wait on CUDA
        if watched and not days.isfinite().all():
            raise ValueError("positions has values that are not finite; give every step a day")
        return _sinusoid(days.to(_exact(x)), self.width // self.heads, self.period)

    def _attend(
        self, x: Tensor, code: Tensor | None, padded: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Pools the projected and encoded steps of (B, T, C, P) by the weights of the queries."""
        heads, width, kind = self.heads, self.width, _exact(x)
        key = self.key.weight.view(heads, self.d_k, width) / math.sqrt(self.d_k)
        fold = (self.query[:, :, None] * key).sum(1)  # heads D
        # The same for all steps, so that no weight feels it: the bias gets its gradient, zero.
        offset = (self.query * self.key.bias.view_as(self.query)).sum(1).to(kind)[None, :, None]
        noise = None
        if self.training and self.dropout.p:
            shape = (x.shape[0], x.shape[3], heads, x.shape[1])
            noise = F.dropout(x.new_ones(shape), min(0.1, self.dropout.p))
        if self.variant == "original":
            return _pool(self._encoded(x), fold, offset, padded, noise, heads)
        if code is not None:
            shared = fold.view(heads, heads, -1).sum(1).to(kind)  # every head has the same codes
            offset = offset + (code @ shared.t()).mT
        if self.inconv is not None and self.inconv.bias is not None:
            fold = fold @ self.inconv.weight.view(width, self.c)
        # The norm's own weight and bias are folded as well: large tensors hold the bare norm.
        norm = self.in_norm
        offset = offset + (fold * norm.bias).sum(1).to(kind)[None, :, None]
        fold = fold * norm.weight
        stats = padded if self.padding_invariant else None
        tokens = _normalized(x, stats, heads, norm.eps)
        own = heads if self.inconv is None else 1
        pooled, weights = _pool(tokens, fold, offset, padded, noise, own)
        total = weights.sum(3, keepdim=True)  # 1 but for dropout
        if self.inconv is not None and self.inconv.bias is not None:
            projection = self.inconv.weight.view(width, self.c)
            shift = self.inconv.bias + (projection * norm.bias).sum(1)
            projection = (projection * norm.weight).view(heads, -1, self.c)
            pooled = torch.einsum("bphc,hdc->bphd", pooled, projection)
        else:
            pooled, shift = pooled * norm.weight.view(heads, -1), norm.bias
        pooled = pooled + shift.view(heads, -1) * total
        if code is not None:
            codes = weights.flatten(1, 2) @ code.to(weights.dtype)  # B (P heads) d
            pooled = pooled + codes.view_as(pooled)
        return pooled, weights

    def _check_length(self, steps: int, positions: Tensor | None) -> None:
        rows = self.position_enc.num_embeddings - (not isinstance(self.positions, tuple))
        if positions is not None:
            raise ValueError(
                "positions is for variant='2d'; variant='original' has a table of its own, made "
                "from the positions= of the constructor"
            )
        if steps > rows or (self.inconv_norm is not None and steps != self.length):
            raise ValueError(
                f"x has {steps} steps; this variant='original' takes "
                f"{f'{rows} at most' if self.inconv_norm is None else f'length={self.length}'}"
            )

    def _encoded(self, x: Tensor) -> Tensor:
        """The 2020 code's steps: normalized, projected, normalized with their order, encoded."""
        tokens = self.in_norm(x.permute(0, 3, 1, 2)).mT  # B P C T
        if self.inconv is not None and self.inconv_norm is not None:
            dense = self.inconv_norm(self.inconv(tokens.flatten(0, 1)))
            tokens = dense.view(*tokens.shape[:2], *dense.shape[1:])
        start = 0 if isinstance(self.positions, tuple) else 1
        code: Tensor = self.position_enc.weight[start : start + x.shape[1]]
        encoded: Tensor = tokens + code.t()
        return encoded

    def _project(self, pooled: Tensor, x: Tensor) -> Tensor:
        for layer in self.mlp:
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                check.batch_norm(layer, pooled.shape[0], x)
            pooled = layer(pooled)
        y: Tensor = self.out_norm(self.dropout(pooled))
        return y


def _normalized(x: Tensor, padded: Tensor | None, heads: int, eps: float) -> Tensor:
    """Group norm of each pixel's series, (B, T, C, P) to (B, P, C, T), padded steps left out."""
    b, t, c, p = x.shape
    tokens = x.permute(0, 3, 2, 1)  # B P C T
    if padded is None:
        normal = torch.group_norm(tokens.flatten(0, 1), heads, eps=eps)
        return normal.view(b, p, c, t)
    hidden = padded[:, None, None, None, :]
    groups = tokens.reshape(b, p, heads, c // heads, t).to(_exact(x)).masked_fill(hidden, 0)
    count = (~hidden).sum(4, keepdim=True).clamp(min=1) * groups.shape[3]
    mean = groups.sum((3, 4), keepdim=True) / count
    centered = (groups - mean).masked_fill(hidden, 0)
    variance = centered.square().sum((3, 4), keepdim=True) / count
    return (centered * (variance + eps).rsqrt()).flatten(2, 3).to(x.dtype)


def _pool(
    tokens: Tensor,
    fold: Tensor,
    offset: Tensor,
    padded: Tensor | None,
    noise: Tensor | None,
    own: int = 1,
) -> tuple[Tensor, Tensor]:
    """Attention of each row of `fold` (heads, C) over the steps of `tokens` (B, P, C, T).

    Args:
        tokens: what is scored and pooled.
        fold: one query a head, scaled.
        offset: (B or 1, heads, T or 1), added to the scores.
        padded: (B, T), True where a step has no weight; a row of nothing else has equal weights.
        noise: (B, P, heads, T), which the weights are multiplied by.
        own: 1: every head pools all channels; heads: each its own group.

    Returns:
        The pooled channels (B, P, heads, C / own) and the weights (B, P, heads, T).
    """
    b, p, c, t = tokens.shape
    heads = fold.shape[0]
    flat = tokens.flatten(0, 1)
    scores = torch.bmm(fold.to(flat.dtype).expand(flat.shape[0], -1, -1), flat)
    scores = scores.view(b, p, heads, t) + offset[:, None]
    if padded is not None:
        hidden = padded[:, None, None]
        scores = scores.masked_fill(hidden, -math.inf)
        scores = scores.masked_fill(hidden.all(3, keepdim=True), 0)
    weights = scores.softmax(3).to(tokens.dtype)
    if noise is not None:
        weights = weights * noise
    groups = flat.reshape(b * p * own, c // own, t)
    pooled = torch.bmm(weights.reshape(b * p * own, heads // own, t), groups.mT)
    return pooled.view(b, p, heads, c // own), weights


def _sinusoid(days: Tensor, d: int, period: int) -> Tensor:
    """sin and cos by turns of days / period^(2 floor(i / 2) / d), i < d; the period's powers are
    float32 as the authors' are, whatever the days' dtype."""
    i = torch.arange(d, device=days.device)
    angle = days[..., None] / torch.pow(period, 2 * (i.float() // 2) / d).to(days.dtype)
    return torch.where(i % 2 == 0, angle.sin(), angle.cos())


def _exact(x: Tensor) -> torch.dtype:
    """At least float32: for sums, angles and scores."""
    return torch.promote_types(x.dtype, torch.float32)


def _per_step(name: str, value: Tensor, steps: tuple[int, ...], x: Tensor) -> Tensor:
    """`value`, one for each step, as a tensor of shape `steps`; (T,) stands for every sample."""
    check.dense(name, value, f"of shape {steps}")
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, x on {x.device}; move one")
    if value.shape not in (steps, steps[-1:]):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; it must be {steps} or {steps[-1:]}, "
            "one for each step of x"
        )
    return value.expand(steps)


def _padded(mask: Tensor | None, steps: tuple[int, ...], x: Tensor) -> Tensor | None:
    """The mask as (B, T), True where a step is to be ignored."""
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        raise TypeError(
            f"key_padding_mask is {mask.dtype}; it must be torch.bool, True where a step is ignored"
        )
    return leading.fold(_per_step("key_padding_mask", mask, steps, x), keep=1)


def _check_widths(
    c: int, heads: int, width: int, d_model: int | None, mlp: tuple[int, ...], variant: Variant
) -> None:
    of = "c" if d_model is None else "d_model"
    check.divides(by="heads", of=of, heads=heads, **{of: width})
    if not mlp:
        raise ValueError(f"mlp=() must start with {of}={width}: take mlp=({width}, 128)")
    check.positive(**{f"mlp[{i}]": m for i, m in enumerate(mlp)})
    if mlp[0] != width:
        cause = ", which d_model=None takes" if d_model is None else ""
        raise ValueError(
            f"mlp[0]={mlp[0]} must be {of}={width}, the width of the joined heads{cause}; "
            f"take mlp={messages.shown((width, *mlp[1:]))}"
        )
    if variant == "2d":
        check.divides(by="heads", of="c", heads=heads, c=c)
        check.divides(by="heads", of="mlp[-1]", **{"heads": heads, "mlp[-1]": mlp[-1]})


def _check_options(
    variant: Variant,
    positions: bool | tuple[float, ...] | None,
    padding_invariant: bool,
    length: int,
    d_model: int | None,
) -> None:
    if variant == "2d" and not isinstance(positions, bool):
        raise ValueError(
            f"positions={messages.shown(positions)} must be True or False for variant='2d', whose "
            "call takes the days; a list is for variant='original'"
        )
    if variant == "original":
        if positions is False:
            raise ValueError(
                "positions=False: variant='original' always encodes them; take None or a list"
            )
        if padding_invariant:
            raise ValueError(
                "padding_invariant=True is for variant='2d'; a norm of variant='original' has a "
                "weight for every step"
            )
        if isinstance(positions, tuple) and len(positions) < (length if d_model else 1):
            raise ValueError(
                f"positions has {len(positions)} items; it must have one for each of "
                f"length={length} steps"
            )
