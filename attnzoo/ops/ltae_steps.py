"""The steps of `ltae` layer by layer: its 2020 form, and the other where a layer is not plain.

The 2020 form has LayerNorms, one of them over (d_model, length), and a position table. The norm
over all steps fixes T, and lets nothing be folded: every step is projected and encoded.
"""

import math

import torch
from torch import Tensor, nn

from ..validation import check, messages
from .pooling_over_time import balanced
from .precision import downcast
from .sinusoid import sinusoid

UPSTREAM = {
    "attention_heads.Q": "query",
    "attention_heads.fc1_k": "key",
    "inlayernorm": "in_norm",
    "outlayernorm": "out_norm",
    "inconv.0": "inconv",
    "inconv.1": "inconv_norm",
}


def check_options(
    variant: str,
    positions: bool | tuple[float, ...] | None,
    padding_invariant: bool,
    length: int,
    d_model: int | None,
) -> None:
    if variant == "2d":
        if isinstance(positions, bool):
            return
        raise ValueError(
            f"positions={messages.shown(positions)} must be True or False for variant='2d', "
            "whose call takes the days; a list is for variant='original'"
        )
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


def check_widths(c: int, heads: int, d_model: int | None, mlp: tuple[int, ...], old: bool) -> None:
    of, width = ("c", c) if d_model is None else ("d_model", d_model)
    check.divides(by="heads", of=of, heads=heads, **{of: width})
    if mlp[:1] != (width,):
        wrong = f"mlp[0]={mlp[0]} must be" if mlp else "mlp=() must start with"
        cause = ", which d_model=None takes" if d_model is None else ""
        near = messages.shown((width, *mlp[1:]))
        raise ValueError(f"{wrong} {of}={width}, the joined heads' width{cause}; take mlp={near}")
    if not old:
        check.divides(by="heads", of="c", heads=heads, c=c)
        check.divides(by="heads", of="mlp[-1]", **{"heads": heads, "mlp[-1]": mlp[-1]})


def position_table(
    positions: bool | tuple[float, ...] | None, length: int, width: int, heads: int, period: int
) -> nn.Embedding:
    """The frozen codes of the listed positions, or of 0 to `length`, tiled over the heads."""
    if isinstance(positions, tuple):
        days = torch.tensor(positions, dtype=torch.float64)
    else:
        days = torch.arange(length + 1, dtype=torch.float64)
    code = sinusoid(days, width // heads, period).float().repeat(1, heads)
    rows, columns = code.shape
    table = nn.Embedding(rows, columns, _weight=code.to(torch.get_default_dtype()))
    return table.requires_grad_(False)


def encode_original(
    x: Tensor,
    positions: Tensor | None,
    in_norm: nn.Module,
    inconv: nn.Module | None,
    inconv_norm: nn.Module | None,
    table: nn.Module,
    first: int,
    length: int,
) -> Tensor:
    """Steps (B, T, C, P) to (B, P, D, T): normalized, projected, normalized with their order.

    The codes (D,) from the `first` of the table on are added, of which there are `length`.
    """
    steps = x.shape[1]
    if positions is not None:
        raise ValueError(
            "positions is for variant='2d'; variant='original' has a table of its own, made "
            "from the positions= of the constructor"
        )
    if steps > length or (inconv_norm is not None and steps < length):
        takes = f"{length} at most" if inconv_norm is None else f"length={length}"
        raise ValueError(f"x has {steps} steps; this variant='original' takes {takes}")
    codes = table(torch.arange(first, first + steps, device=x.device))  # T D
    e: Tensor = in_norm(downcast(x.permute(0, 3, 1, 2), table)).mT  # B P C T
    if inconv is not None and inconv_norm is not None:
        dense = inconv_norm(inconv(e.flatten(0, 1)))
        e = dense.view(*e.shape[:2], *dense.shape[1:])
    return torch.add(e, codes.t())


def folded_query(query: Tensor, key: nn.Linear) -> tuple[Tensor, Tensor]:
    """q_h K_h / sqrt(d_k), (heads, D), and what the bias adds to all steps alike, (heads,)."""
    heads, d_k = query.shape
    weight = key.weight.view(heads, d_k, -1) / math.sqrt(d_k)
    return (query[:, :, None] * weight).sum(1), (query * key.bias.view_as(query)).sum(1)


def folded_norm(norm: nn.GroupNorm | nn.LayerNorm, conv: nn.Conv1d | None) -> tuple[Tensor, Tensor]:
    """Weight and shift, (D, C) and (D,), of the norm's affine map with the projection behind it.

    Without a projection they are the norm's own, (C,) each: large tensors hold the bare norm.
    """
    if conv is None or conv.bias is None:
        return norm.weight, norm.bias
    projection = conv.weight.squeeze(2)  # D C
    return projection * norm.weight, conv.bias + (projection * norm.bias).sum(1)


def encode(
    x: Tensor,
    norm: nn.Module,
    inconv: nn.Module | None,
    code: Tensor | None,
    groups: int,
    padded: Tensor | None,
) -> Tensor:
    """Steps (B, P, C, T) to (B, P, D, T): normalized, without the padded ones, and projected.

    The code (B, T, D / groups) of each step is added to every group of channels.
    """
    b, p, _, t = x.shape
    series = x if padded is None else balanced(x, groups, padded)
    n = norm(downcast(series.flatten(0, 1), norm))[..., :t].to(x.dtype)
    e: Tensor = (n if inconv is None else inconv(n)).view(b, p, -1, t)
    if code is not None:
        e = e + code.mT.repeat(1, groups, 1)[:, None].to(e.dtype)
    return e
