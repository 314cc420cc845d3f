"""The 2020 form of `ltae`: LayerNorms, one of them over (d_model, length), and a position table.

The norm over all steps fixes T, and the projection cannot be folded: it runs on every step.
"""

import torch
from torch import Tensor, nn

from ..ops.precision import downcast
from ..ops.sinusoid import sinusoid
from ..validation import messages

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


def position_table(
    positions: bool | tuple[float, ...] | None, length: int, width: int, heads: int, period: int
) -> nn.Embedding:
    """Constant encodings of the listed positions, or of 0 to `length`, repeated for each head."""
    if isinstance(positions, tuple):
        days = torch.tensor(positions, dtype=torch.float64)
    else:
        days = torch.arange(length + 1, dtype=torch.float64)
    code = sinusoid(days, width // heads, period).float().repeat(1, heads)
    rows, columns = code.shape
    table = nn.Embedding(rows, columns, _weight=code.to(torch.get_default_dtype()))
    return table.requires_grad_(False)


def encode(
    x: Tensor,
    positions: Tensor | None,
    in_norm: nn.Module,
    inconv: nn.Module | None,
    inconv_norm: nn.LayerNorm | None,
    codes: Tensor,
) -> Tensor:
    """Steps (B, T, C, P) to (B, P, D, T): normalized, projected, and normalized over all steps.

    The first T of `codes`, each (D,), are added.
    """
    steps = x.shape[1]
    if positions is not None:
        raise ValueError(
            "positions is for variant='2d'; variant='original' has a table of its own, built "
            "from the constructor's positions=: leave it out of the call"
        )
    length = len(codes) if inconv_norm is None else inconv_norm.normalized_shape[1]
    if steps > length or (inconv_norm is not None and steps < length):
        takes = f"{length} at most" if inconv_norm is None else f"length={length}"
        raise ValueError(f"x has {steps} steps; this block, variant='original', takes {takes}")
    e: Tensor = in_norm(downcast(x.permute(0, 3, 1, 2), codes)).mT  # B P C T
    if inconv is not None and inconv_norm is not None:
        dense = inconv_norm(inconv(e.flatten(0, 1)))
        e = dense.view(*e.shape[:2], *dense.shape[1:])
    return e + codes[:steps].t()
