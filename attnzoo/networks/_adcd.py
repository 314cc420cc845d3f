"""The two stages of ADCD-Net, and the features that both have of their own."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..blocks.dia import DIA
from ..blocks.dtm import DTM, Tokenizer, UnbiasedNorm
from ..ops.pooling import adaptive_average
from ..ops.precision import upcast
from ..registry import InputSize
from ..validation import check

Widths = tuple[int, int, int]
MapSize = tuple[int, int, int]  # C, H, W
GRID = 4  # cells across of pooled maps


def perceptual_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The mean over samples of sum_k mean_HW |a_k / |a_k| - b_k / |b_k||^2, maps (B, C, H, W)."""
    pairs = zip(map(_unit, a), map(_unit, b), strict=True)
    maps = [(u - v).square().sum(1).mean((1, 2)) for u, v in pairs]
    return (maps[0] + maps[1] + maps[2]).mean()


def _unit(x: Tensor) -> Tensor:
    wide = upcast(x)
    unit: Tensor = wide / (torch.linalg.vector_norm(wide, dim=1, keepdim=True) + 1e-10)
    return unit


class Features(nn.Module):
    """Three convolutions with BatchNorm and ReLU, and their maps."""

    def __init__(self, c: int, widths: Widths, strides: tuple[int, int, int]) -> None:
        super().__init__()
        self.widths, self.strides = widths, strides
        pairs = zip((c, *widths), widths, strides, strict=False)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, s, padding=1) for a, b, s in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(x)
            check.batch_norm(norm, x.shape[0] * x.shape[2] * x.shape[3], x)
            x = norm(x).relu()
            maps.append(x)
        return maps

    def sizes(self, height: int, width: int) -> list[MapSize]:
        """Channels, height and width of the maps of an image."""
        found = []
        for b, stride in zip(self.widths, self.strides, strict=True):
            height, width = -(-height // stride), -(-width // stride)
            found.append((b, height, width))
        return found

    def macs(self, height: int, width: int) -> int:
        maps = zip(self.sizes(height, width), self.convs, strict=True)
        return sum(h * w * cast(Tensor, conv.weight).numel() for (_, h, w), conv in maps)


class Metric(nn.Module):
    """The maps that the loss compares."""

    def __init__(self, c: int, widths: Widths) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c, widths[0], 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(widths[1], widths[2], 3, 2, padding=1, bias=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.conv1(2 * x - 1)
        second = self.conv2(first)  # of what stands before the ReLU
        return [first.relu(), second.relu(), self.conv3(second).relu()]


class Images(nn.Module):
    """Features and DIA of both images, the part that the stages have in common."""

    def __init__(self, c: int, c_y: int, widths: Widths) -> None:
        super().__init__()
        self.ms, self.pan = Features(c, widths, (1, 2, 1)), Features(c_y, widths, (2, 2, 2))
        self.dia_ms = DIA(widths[2], scales=(0.4, 0.1))
        self.dia_pan = DIA(widths[2], scales=(0.1, 0.4))

    def forward(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Four maps of each image, the last of DIA."""
        ms, pan = self.ms(x), self.pan(y)
        return [*ms, self.dia_ms(ms[-1])], [*pan, self.dia_pan(pan[-1])]

    def last(self, height: int, width: int) -> MapSize:
        """The size of the last maps, for x of the given size."""
        return self.ms.sizes(height, width)[-1]

    def macs(self, height: int, width: int) -> int:
        last = InputSize(height=-(-height // 2), width=-(-width // 2))
        features = self.ms.macs(height, width) + self.pan.macs(4 * height, 4 * width)
        return features + self.dia_ms.macs(last) + self.dia_pan.macs(last)


class Stage1(nn.Module):
    """Prior maps and tokens, and the loss that draws the maps of both images together."""

    def __init__(
        self,
        images: Images,
        last: MapSize,
        dims: tuple[int, int],
        pooled: bool,
        metric: Metric | None,
    ) -> None:
        super().__init__()
        self.images, self.metric = images, metric
        self.token_ms, self.token_pan = (Tokenizer(last, d, GRID if pooled else None) for d in dims)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps and tokens of x and y."""
        ms, pan = self.images(x, y)
        m, p = ms[-1], pan[-1]
        return m, p, self.token_ms(m)[:, None], self.token_pan(p)[:, None]

    def loss(self, m: Tensor, p: Tensor) -> Tensor:
        if self.metric is None:
            raise ValueError("stage=1 needs the loss's convolutions: build with loss_widths")
        return perceptual_distance(self.metric(p), self.metric(m)).to(m.dtype)

    def macs(self, height: int, width: int) -> int:
        weights = [cast(nn.Linear, t[0]).weight for t in (self.token_ms, self.token_pan)]
        return self.images.macs(height, width) + sum(w.numel() for w in weights)


class Stage2(nn.Module):
    """Logits of both images and of the two together, with what stage 1 gave."""

    def __init__(
        self,
        images: Images,
        size: tuple[int, int],
        dims: tuple[int, int],
        num_classes: int,
        dropout: float,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.images, self.pooled = images, config["tokenizer"] == "pool"
        last, hidden = images.last(*size), config["c_out"]
        ms = (*images.ms.sizes(*size), last)
        pan = (*images.pan.sizes(4 * size[0], 4 * size[1]), last)
        self.dtm_ms = DTM(ms, dim=dims[0], readout_norm=False, **config)
        self.dtm_pan = DTM(pan, dim=dims[1], readout_norm=False, **config)
        self.fc1 = nn.Linear(last[0] * (GRID**2 if self.pooled else last[1] * last[2]), hidden)
        self.out_norm = UnbiasedNorm(hidden)
        self.fc2, self.dropout = nn.Linear(hidden, num_classes), nn.Dropout(dropout)

    def forward(
        self, x: Tensor, y: Tensor, m: Tensor, p: Tensor, t_ms: Tensor, t_pan: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ms, pan = self.images(x, y)
        of_ms = self.out_norm(self.dtm_ms(ms, token=t_ms)).relu()
        of_pan = self.out_norm(self.dtm_pan(pan, token=t_pan)).relu()
        both = [((g.sigmoid() + 1) * d).relu() for g, d in ((m, ms[-1]), (p, pan[-1]))]
        joined = both[0] + both[1]
        joined = adaptive_average(joined, GRID, GRID) if self.pooled else joined
        fused = self.dropout(self.out_norm(self.fc1(joined.flatten(1))).relu())
        return self.fc2(fused), self.fc2(of_pan), self.fc2(of_ms)

    def macs(self, height: int, width: int) -> int:
        size = InputSize(height=height, width=width)
        tokens = self.dtm_ms.macs(size) + self.dtm_pan.macs(size)
        ends = self.fc1.weight.numel() + 3 * self.fc2.weight.numel()
        return self.images.macs(height, width) + tokens + ends
