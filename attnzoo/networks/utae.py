"""U-TAE: a U-net over image series whose skips are collapsed by one attention over the dates.

When: each pixel of a satellite series is to be classified, at any size and with missing dates.
Paper: Panoptic Segmentation of Satellite Image Time Series with Convolutional Temporal Attention
    Networks, Garnot, Landrieu, ICCV 2021, arXiv 2107.07933.
Code: VSainteuf/utae-paps @987874e, `src/backbones/utae.py`, class `UTAE`.
Math: per date, m_0 = in_conv(x) and z = conv1(down(m_{i-1})), m_i = z + conv2(z); then over the
    dates y, a = ltae(m_{n-1}, positions), and from the deepest level up
    z = conv1([up(y), skip(utae_aggregator(m_{i-1}, a))]), y = z + conv2(z); out_conv(y). Every
    conv is followed by a norm and ReLU, the last included: scores are never negative.
Shapes: (B, T, c, H, W) and the days `positions` (B, T) -> (B, out_conv[-1], H, W); weights
    (heads, B, T, h, w), h = ceil(H / 2^(n-1)); `features=True`: the maps y, deepest first.
Differs: theirs runs every encoder block a second time, on zeros, to learn a shape; that half of the
    cost is not reproduced. A date is padded where all its values are `pad_value`, as in theirs, or
    where `key_padding_mask` says so. Theirs asks again of each block's input, so that a real date
    whose map is all zero becomes padding; here it stays real. Sizes that 2^(n-1) does not divide,
    or too small to be reflected, fail in theirs; here the last row and column are repeated and the
    output is cropped. Padded dates count in the statistics of ltae's first norm, in both.
Cost: parameters and MACs are sums over the layers; 1,087,260 parameters at the defaults with c=10.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd import needs_reference_form
from ..blocks.ltae import LTAE
from ..blocks.utae_aggregator import Mode, UTAEAggregator
from ..ops.precision import autocast_disabled
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Count, Counts, Rate, Width
from ._unet import Down, Norm, PaddingMode, Up, check_widths, conv_layer, conv_weights


class UTAE(nn.Module):
    """U-TAE: `net(x, positions=days)` segments an image series.

    The authors' training script draws all weights anew (Xavier normal, biases N(0, 1)); here
    layers start as torch's and ltae's do, as in their constructor.

    Args:
        c: channels of x.
        encoder_widths: channels of each level, finest first; with "att_group" multiples of
            `heads`, with norm "group" of 4.
        decoder_widths: the same of the decoder, the last equal to the encoder's; None: all equal.
        out_conv: widths of the last convolutions, the last one the number of classes.
        aggregate: how dates are collapsed in the skips; see `utae_aggregator`.
        norm: of the encoder; the decoder's is always BatchNorm.
        heads: of ltae.
        d_model: width of ltae; a multiple of `heads`.
        d_k: width of ltae's queries.
        pad_value: a date of this value alone is padding.
        padding_mode: of the 3 x 3 and 4 x 4 convolutions.
        dropout: of ltae.

    Raises:
        ValueError: widths that do not fit each other, `heads` or the norm.
    """

    def __init__(
        self,
        c: Width,
        *,
        encoder_widths: Counts = (64, 64, 64, 128),
        decoder_widths: Counts | None = (32, 32, 64, 128),
        out_conv: Counts = (32, 20),
        aggregate: Mode = "att_group",
        norm: Norm = "group",
        heads: Count = 16,
        d_model: Count = 256,
        d_k: Count = 4,
        pad_value: float = 0.0,
        padding_mode: PaddingMode = "reflect",
        dropout: Rate = 0.2,
    ) -> None:
        super().__init__()
        down, up = encoder_widths, decoder_widths or encoder_widths
        check_widths(down, up, norm, heads if aggregate == "att_group" else 1)
        self.c, self.pad_value, self.norm = c, pad_value, norm
        self.in_conv = conv_layer((c, down[0], down[0]), norm, padding_mode)
        self.down_blocks = nn.ModuleList(Down(a, b, norm, padding_mode) for a, b in pairwise(down))
        self.temporal_encoder = LTAE(
            down[-1],
            heads=heads,
            d_k=d_k,
            d_model=d_model,
            mlp=(d_model, down[-1]),
            dropout=dropout,
        )
        self.aggregator = UTAEAggregator(mode=aggregate)
        self.up_blocks = nn.ModuleList(
            Up(up[i], up[i - 1], down[i - 1], padding_mode) for i in range(len(up) - 1, 0, -1)
        )
        self.out_conv = conv_layer((up[0], *out_conv), "batch", padding_mode)

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        features: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor | list[Tensor], Tensor]:
        """Scores, or the decoder's maps; with `need_weights` a pair with ltae's weights."""
        check.flag(need_weights=need_weights, features=features)
        check.image_series(x, self.c, next(self.parameters()))
        size = (x.shape[3], x.shape[4])
        padded = self._padded(x, check.padding_mask(key_padding_mask, x.shape[:2], x))
        skips = self._encode(self._extended(x), padded)
        y, weights = self.temporal_encoder(
            skips[-1], positions=positions, key_padding_mask=padded, need_weights=True
        )
        maps = [y]
        for block, skip in zip(self.up_blocks, skips[-2::-1], strict=True):
            maps.append(block(maps[-1], self.aggregator(skip, weights, key_padding_mask=padded)))
        weights = _crop(weights, size, len(self.up_blocks))
        if features:
            out = [_crop(m, size, len(maps) - 1 - i) for i, m in enumerate(maps)]
            return (out, weights) if need_weights else out
        scores = _crop(self.out_conv(maps[-1]), size, 0)
        return (scores, weights) if need_weights else scores

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample, of the size that it is extended to."""
        step: int = 2 ** len(self.down_blocks)
        macs = 0
        height, width = (step * max(2, -(-n // step)) for n in (size.height, size.width))
        size, pixels = size._replace(height=height, width=width), height * width
        for level, block in enumerate((self.in_conv, *self.down_blocks)):
            macs += size.steps * (pixels >> 2 * level) * conv_weights(block)
        low = len(self.down_blocks)
        small = size._replace(height=size.height >> low, width=size.width >> low)
        macs += self.temporal_encoder.macs(small)
        for level, block in zip(range(low - 1, -1, -1), self.up_blocks, strict=True):
            # a transposed convolution multiplies for each pixel it reads, a quarter of the output
            spread = conv_weights(block, nn.ConvTranspose2d)
            macs += (pixels >> 2 * level) * (conv_weights(block) + spread // 4)
        return macs + pixels * conv_weights(self.out_conv)

    def _padded(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """(B, T), True for padding; None where a call without a graph to come finds none."""
        padded = (x == self.pad_value).flatten(2).all(2)
        if mask is not None:
            padded = padded | mask
        return padded if _traced(x) or padded.any() else None

    def _extended(self, x: Tensor) -> Tensor:
        """The last row and column repeated up to a size that every level can halve and reflect."""
        step = 2 ** len(self.down_blocks)
        for axis in (3, 4):
            n = x.shape[axis]
            larger = torch.sym_max if isinstance(n, torch.SymInt) else max
            whole = step * larger(2, (n + step - 1) // step)
            if torch.compiler.is_compiling() or whole != n:  # a compiled graph serves any size
                at = torch.arange(whole, device=x.device).clamp(max=n - 1)
                x = x.index_select(axis, at)
        return x

    def _encode(self, x: Tensor, padded: Tensor | None) -> list[Tensor]:
        """The map (B, T, e_i, H_i, W_i) of each level, `pad_value` at padded dates.

        A call that nobody traces computes the other dates alone. One that is traced computes all,
        and BatchNorm the statistics of the others.
        """
        lead, index, real, maps = x.shape[:2], None, None, []
        if padded is not None:
            x = self._filled(x, padded)  # a padded date may hold anything
            if not _traced(x):
                index = (~padded).flatten().nonzero().squeeze(1)
            elif self.training and self.norm == "batch":
                real = ~padded.flatten()
        dates = x.flatten(0, 1) if index is None else x.flatten(0, 1).index_select(0, index)
        for block in (self.in_conv, *self.down_blocks):
            dates = full = block(dates) if real is None else block(dates, real)
            if index is not None:
                shape = (lead[0] * lead[1], *dates.shape[1:])
                full = dates.new_full(shape, self.pad_value).index_copy(0, index, dates)
            full = torch.unflatten(full, 0, lead)
            maps.append(full if padded is None or index is not None else self._filled(full, padded))
        return maps

    def _filled(self, x: Tensor, padded: Tensor) -> Tensor:
        """(B, T, C, H, W) with `pad_value` at padded dates."""
        return x.masked_fill(padded[:, :, None, None, None], self.pad_value)

    def extra_repr(self) -> str:
        return f"c={self.c}, pad_value={self.pad_value}"


def _traced(x: Tensor) -> bool:
    """Whether shapes of this call may not depend on values."""
    with autocast_disabled(x):
        return needs_reference_form(x)


def _crop(x: Tensor, size: tuple[int, int], level: int) -> Tensor:
    """What belongs to the pixels of an input of `size`, `level` halvings down."""
    rows, columns = (-(-n // 2**level) for n in size)
    return x[..., :rows, :columns]


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    days = 5 * torch.arange(size.steps).expand(size.batch, -1)
    x = random(size.batch, size.steps, config["c"], size.height, size.width)
    return {"x": x, "positions": days}


register(
    "utae",
    UTAE,
    layout="image_series",
    family="network",
    example={
        "c": 3,
        "encoder_widths": (4, 8),
        "decoder_widths": (4, 8),
        "out_conv": (4,),
        "heads": 2,
        "d_model": 8,
        "dropout": 0.0,
    },
    input_size=InputSize(steps=6, height=8, width=8),
    inputs=inputs,
    upstream={
        "in_conv.conv.conv": "in_conv",
        "out_conv.conv.conv": "out_conv",
        "down_blocks.*.down.conv": "down_blocks.*.down",
        **{
            f"{side}_blocks.*.{conv}.conv": f"{side}_blocks.*.{conv}"
            for side in ("down", "up")
            for conv in ("conv1", "conv2")
        },
        "temporal_encoder.attention_heads.Q": "temporal_encoder.query",
        "temporal_encoder.attention_heads.fc1_k": "temporal_encoder.key",
    },
)
