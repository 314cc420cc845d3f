"""The convolutions of U-TAE's encoder and decoder."""

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ..ops.precision import upcast
from ..validation import check
from ..validation.messages import shown

Norm = Literal["group", "batch", "instance", "none"]
PaddingMode = Literal["reflect", "zeros", "replicate", "circular"]


class ConvLayers(nn.Sequential):
    """Layers; of (N, C, H, W) with `real` (N,), BatchNorm's statistics are of the real ones."""

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        for layer in self:
            if real is not None and isinstance(layer, nn.BatchNorm2d):
                x = batch_norm_of(layer, x, real)
            else:
                x = layer(x)
        return x


def batch_norm_of(norm: nn.BatchNorm2d, x: Tensor, real: Tensor) -> Tensor:
    """Train-mode BatchNorm whose statistics are of the samples `real` (N,) of x alone."""
    wide = upcast(x)
    count = real.to(wide.dtype).sum() * (x.shape[2] * x.shape[3])
    share = (real / count)[:, None, None, None]
    mean = (wide * share).sum((0, 2, 3), keepdim=True)
    variance = ((wide - mean).square() * share).sum((0, 2, 3), keepdim=True)
    if norm.track_running_stats:
        with torch.no_grad():
            unbiased = variance * (count / (count - 1))
            for name, value in (("running_mean", mean), ("running_var", unbiased)):
                kept = norm.get_buffer(name)
                kept.lerp_(value.flatten().to(kept.dtype), norm.momentum or 0.1)
            norm.get_buffer("num_batches_tracked").add_(1)
    unit = (wide - mean) / (variance + norm.eps).sqrt()
    return (unit * norm.weight[:, None, None] + norm.bias[:, None, None]).to(x.dtype)


def conv_layer(
    widths: tuple[int, ...], norm: Norm, padding: PaddingMode, *, kernel: int = 3, stride: int = 1
) -> ConvLayers:
    """Convolution, norm and ReLU for every pair of widths."""
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers.append(nn.Conv2d(a, b, kernel, stride, padding=1, padding_mode=padding))
        if norm == "group":
            layers.append(nn.GroupNorm(4, b))
        elif norm != "none":
            layers.append(nn.BatchNorm2d(b) if norm == "batch" else nn.InstanceNorm2d(b))
        layers.append(nn.ReLU())
    return ConvLayers(*layers)


class Down(nn.Module):
    """Half the resolution, for each date."""

    def __init__(self, a: int, b: int, norm: Norm, padding: PaddingMode) -> None:
        super().__init__()
        self.down = conv_layer((a, a), norm, padding, kernel=4, stride=2)
        self.conv1 = conv_layer((a, b), norm, padding)
        self.conv2 = conv_layer((b, b), norm, padding)

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        z = self.conv1(self.down(x, real), real)
        out: Tensor = z + self.conv2(z, real)
        return out


class Up(nn.Module):
    """Twice the resolution, beside the skip of that resolution."""

    def __init__(self, a: int, b: int, skip: int, padding: PaddingMode) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(a, b, 4, 2, padding=1), nn.BatchNorm2d(b), nn.ReLU()
        )
        self.skip_conv = nn.Sequential(nn.Conv2d(skip, skip, 1), nn.BatchNorm2d(skip), nn.ReLU())
        self.conv1 = conv_layer((b + skip, b), "batch", padding)
        self.conv2 = conv_layer((b, b), "batch", padding)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        z = self.conv1(torch.cat((self.up(x), self.skip_conv(skip)), 1))
        out: Tensor = z + self.conv2(z)
        return out


def conv_weights(block: nn.Module, kind: type[nn.Module] = nn.Conv2d) -> int:
    """Weights of the convolutions: the multiply-adds of a pixel."""
    layers = [m for m in block.modules() if isinstance(m, kind)]
    return sum(p.numel() for m in layers for p in m.parameters() if p.ndim == 4)


def check_widths(down: tuple[int, ...], up: tuple[int, ...], norm: Norm, heads: int) -> None:
    """Widths of both sides agree at the deepest level and divide as heads and norm need."""
    if len(down) != len(up) or down[-1] != up[-1]:
        raise ValueError(
            f"decoder_widths={shown(up)} must have one width for each level, the last that of "
            f"encoder_widths={shown(down)}: take {shown((*down[:-1], down[-1]))}, or None"
        )
    for i, width in enumerate(down):
        of = f"encoder_widths[{i}]"
        check.divides(by="heads", of=of, **{"heads": heads, of: width})
        if norm == "group":
            groups = "the groups of norm='group'"
            check.divides(by=groups, of=of, **{groups: 4, of: width})
