"""Temporal aggregation of U-TAE: a sum over T by the attention weights of the lowest resolution.

When: maps of all dates are to be collapsed by attention weights computed at a coarser scale.
Paper: Panoptic Segmentation of Satellite Image Time Series with Convolutional Temporal Attention
    Networks, Garnot, Landrieu, ICCV 2021, arXiv 2107.07933.
Code: VSainteuf/utae-paps @987874e, `src/backbones/utae.py`, class `Temporal_Aggregator`.
Math: with the weights a_gt of head g at step t resized to the size of x, "att_group":
    y = concat_g sum_t a_gt x_t[g], where x_t[g] is the g-th of `heads` groups of channels;
    "att_mean": y = sum_t mean_g(a_gt) x_t; "mean": y = mean_t x_t. Padded steps have weight 0 and
    the mean does not count them; the weights of the others stay as they are.
Shapes: (B, T, C, H, W) and weights (heads, B, T, h, w) -> (B, C, H, W); "mean" takes no weights.
Differs: if x is larger than the weights, these are upsampled bilinearly; if it is smaller, averaged
    over whole cells ("att_mean" is always bilinear). The authors decide that for both axes by
    comparing the height of x with the width of the weights, and fail on many maps that are not
    square; here each axis is decided separately, with equal results where theirs runs. A sample
    with every step padded gives zeros; their "mean" divides by zero. For half precision with a
    padded step their output is float32; here the dtype is kept.
Cost: no parameters; T c H W multiply-adds, apart from the resize.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.precision import autocast_disabled
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Width

Mode = Literal["att_group", "att_mean", "mean"]


def aggregate(x: Tensor, weights: Tensor) -> Tensor:
    """sum_t a_gt x_t[g] of (B, T, C, H, W) by (heads, B, T, H, W) -> (B, C, H, W)."""
    groups = torch.unflatten(x, 2, (weights.shape[0], -1))  # B T heads C/heads H W
    y: Tensor = (groups * weights.permute(1, 2, 0, 3, 4).unsqueeze(3)).sum(1).flatten(1, 2)
    return y


def resize(weights: Tensor, height: int, width: int) -> Tensor:
    """(N, T, h, w) to (N, T, height, width): bilinear along an axis that grows, else averaged."""
    rows, columns = weights.shape[2:]
    grown = (height if height > rows else rows, width if width > columns else columns)
    cell = (grown[0] // height, grown[1] // width)
    if (grown[0] // cell[0], grown[1] // cell[1]) != (height, width):
        raise ValueError(
            f"attn of {rows} x {columns} cannot be averaged to the {height} x {width} of x: over "
            f"cells of {cell[0]} x {cell[1]} it gives {grown[0] // cell[0]} x "
            f"{grown[1] // cell[1]}; take mode='att_mean', which interpolates, or resize x"
        )
    if grown != (rows, columns):
        weights = F.interpolate(weights, grown, mode="bilinear", align_corners=False)
    return F.avg_pool2d(weights, cell) if cell != (1, 1) else weights


class UTAEAggregator(nn.Module):
    """Sums (B, T, C, H, W) over T by the attention weights of a smaller map; no parameters.

    `block(x, attn, key_padding_mask=mask)`; padded steps of x must be finite.

    Args:
        c: channels of x, checked if given; "att_group" needs a multiple of attn's heads.
        mode: "att_group": each head weights its own group of channels; "att_mean": the mean of
            the heads weights all; "mean": equal weights, attn is not used.

    Raises:
        ValueError: attn is missing, has another number of samples or steps than x or a number of
            heads that does not divide the channels, or cannot be pooled to the size of x.
    """

    batch_axes: ClassVar = {"attn": 1}  # of arguments whose batch axis is not the first

    def __init__(self, c: Width | None = None, *, mode: Mode = "att_group") -> None:
        super().__init__()
        self.c, self.mode = c, mode

    def forward(
        self, x: Tensor, attn: Tensor | None = None, *, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        check.image_series(x, self.c)
        padded = check.padding_mask(key_padding_mask, x.shape[:2], x)
        if self.mode == "mean":
            return _mean(x, padded)
        weights = self._checked(attn, x).to(x.dtype)
        size = (x.shape[3], x.shape[4])
        if self.mode == "att_mean":
            mean = weights.mean(0)
            weights = F.interpolate(mean, size, mode="bilinear", align_corners=False)[None]
        else:
            weights = torch.unflatten(resize(weights.flatten(0, 1), *size), 0, weights.shape[:2])
        if padded is not None:
            weights = weights.masked_fill(padded[None, :, :, None, None], 0)
        return aggregate(x, weights)

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample's weighted sum; if c is None, of one channel."""
        return size.steps * (self.c or 1) * size.height * size.width

    def _checked(self, attn: Tensor | None, x: Tensor) -> Tensor:
        if attn is None:
            raise ValueError(
                f"attn is missing: mode={self.mode!r} needs weights {_wanted(x)}, as ltae returns "
                "them with need_weights=True; mode='mean' takes none"
            )
        check.dense("attn", attn, "(heads, B, T, h, w)")
        fits = attn.ndim == 5 and attn.shape[1] == x.shape[0] and attn.shape[2] == x.shape[1]
        if not fits or attn.shape[0] * attn.shape[3] * attn.shape[4] == 0:
            raise ValueError(
                f"attn has shape {tuple(attn.shape)}; for this x it must be {_wanted(x)}"
            )
        check.token(attn, like=x, name="attn")
        if self.mode == "att_group" and x.shape[2] % attn.shape[0]:
            raise ValueError(
                f"attn has {attn.shape[0]} heads, which must divide the {x.shape[2]} channels of x "
                "with mode='att_group'; take mode='att_mean', which joins the heads"
            )
        return attn

    def extra_repr(self) -> str:
        return f"c={self.c}, mode={self.mode!r}"


def _wanted(x: Tensor) -> str:
    """The shape of the weights, for errors only: compilers specialize on sizes that are printed."""
    return f"(heads, {x.shape[0]}, {x.shape[1]}, h, w)"


def _mean(x: Tensor, padded: Tensor | None) -> Tensor:
    """The mean of the steps that are not padded; zeros if all are."""
    if padded is None:
        return x.mean(1)
    share = (~padded).to(x.dtype) / (~padded).sum(1, keepdim=True).clamp(min=1)  # B T
    with autocast_disabled(x):
        return (share[:, None] @ x.flatten(2)).view(x.shape[0], *x.shape[2:])


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    """Weights of half the resolution."""
    low = (size.height + 1) // 2, (size.width + 1) // 2
    return {
        "x": random(size.batch, size.steps, config["c"] or 32, size.height, size.width),
        "attn": random(4, size.batch, size.steps, *low).softmax(2),
    }


register(
    "utae_aggregator",
    UTAEAggregator,
    layout="image_series",
    family="temporal",
    example={"c": 32},
    inputs=inputs,
)
