"""PaPs: parcels as points, the panoptic head on U-TAE's maps.

When: every parcel of a satellite series is to be outlined and classified, on the maps of `utae`.
Paper: Panoptic Segmentation of Satellite Image Time Series with Convolutional Temporal Attention
    Networks, Garnot, Landrieu, ICCV 2021, arXiv 2107.07933.
Code: VSainteuf/utae-paps @987874e, `src/panoptic/paps.py`, class `PaPs`.
Math: on the finest map f, heat = sigmoid(conv(f)) and the saliency z = conv(f); the vector v of a
    center is that of every map at its place, side by side. class = MLP(v), size (h, w) =
    softplus(MLP(v)), shape s = MLP(v) of shape_size x shape_size. The box has round(h) x round(w)
    pixels, 1 at least, around the center; in it r = resize(s) + z, cropped to the image, and
    mask = sigmoid(r) sigmoid(CNN(r)), or sigmoid(s) sigmoid(z) with `mask_conv=False`.
Shapes: maps (B, dims[i], ceil(H / 2^(L-1-i)), ceil(W / 2^(L-1-i))), deepest first, as
    `utae(..., features=True)` returns them, and `centers` (B, n, 2), rows and columns, -1 for none
    -> heat and saliency (B, 1, H, W), class (B, n, num_classes), size (B, n, 2), masks
    (B, n, H, W), zero outside their boxes. Without `centers` they are found, and returned last.
Differs: theirs contains the encoder, whose keys are ignored. Theirs compares heat with the mean of
    the batch, here each image with its own; theirs clips boxes at H on both axes, which is right
    for square images alone, and fails for batch 1 and without any center. Here a batch has one
    array of centers, filled up with -1, whose results are zero. There are no reference vectors.
    No gradient reaches the size through the box, in both. Two parcels with one pixel between them
    may share a center, and a mask never leaves its box.
Cost: 172,413 parameters by default; MACs 18 H W (E 32 + 32) of the maps, E = dims[-1], and those of
    the MLPs for each center; the CNN's, 2,592 for each pixel of a box, are not counted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd import needs_reference_form
from ..ops.memory_format import match_memory_format
from ..ops.precision import upcast, upcast_dtype
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Count, Counts, Rate, Width
from ._panoptic import (
    MaskCNN,
    assemble,
    check_centers,
    check_maps,
    check_zones,
    peaks,
    places,
    window,
    zone_peaks,
)
from ._unet import conv_layer, conv_weights


def resampling(at: Tensor, start: Tensor, size: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """Weights (..., P, side) of the bilinear resize of `side` cells to `size` pixels from `start`.

    `at` (..., P) are pixels; those outside have no weight.
    """
    offset = (at - start[..., None]).to(dtype)
    source = (offset + 0.5) * side / size[..., None] - 0.5
    cells = torch.arange(side, device=at.device)
    weights = 1 - (source.clamp(0, side - 1)[..., None] - cells).abs()
    inside = (offset >= 0) & (offset < size[..., None])
    return weights.clamp(min=0) * inside[..., None]


class PaPs(nn.Module):
    """Parcels as points: `head(maps)` for the maps of `utae(..., features=True)`.

    Training: the heat learns the distance to the parcels' centers; `head(maps, zones=ids)` takes
    for each parcel of the integer map `ids` (B, H, W) the pixel of the highest heat as its center
    (negative ids: no parcel), and the classes, sizes and masks found there learn those of the
    parcel. `panoptic(maps)` gives the segmentation.

    Args:
        dims: channels of each map, deepest first.
        num_classes: classes of a parcel.
        shape_size: side of the shape that is resized to the box.
        mask_conv: whether the mask's CNN acts.
        min_confidence: heat of a center below which `panoptic` leaves it out.
        min_remain: share of a mask that must be free for `panoptic` to paint it.
        mask_threshold: value above which a pixel belongs to a mask.

    Raises:
        ValueError: maps of sizes that do not halve, of one pixel, centers outside the image, or
            train mode with fewer than two centers.
    """

    def __init__(
        self,
        dims: Counts,
        *,
        num_classes: Width = 20,
        shape_size: Count = 16,
        mask_conv: bool = True,
        min_confidence: Rate = 0.2,
        min_remain: Rate = 0.5,
        mask_threshold: Rate = 0.4,
    ) -> None:
        super().__init__()
        self.dims, self.side = dims, shape_size
        self.min_confidence, self.min_remain = min_confidence, min_remain
        self.mask_threshold = mask_threshold
        c, half, quarter = sum(dims), max(1, sum(dims) // 2), max(1, sum(dims) // 4)
        self.heatmap_conv = conv_layer((dims[-1], 32, 1), "batch", "reflect")[:-1]
        self.saliency_conv = conv_layer((dims[-1], 32, 1), "batch", "reflect")[:-1]
        self.shape_mlp = nn.Sequential(*_hidden(c, half), nn.Linear(half, shape_size**2))
        self.size_mlp = nn.Sequential(
            *_hidden(c, half), *_hidden(half, quarter), nn.Linear(quarter, 2), nn.Softplus()
        )
        self.class_mlp = nn.Sequential(
            *_hidden(c, half), nn.Linear(half, quarter), nn.Linear(quarter, num_classes)
        )
        self.mask_cnn = MaskCNN() if mask_conv else None

    def forward(
        self,
        features: Sequence[Tensor],
        *,
        centers: Tensor | None = None,
        zones: Tensor | None = None,
        heatmap_only: bool = False,
    ) -> tuple[Tensor, ...]:
        """Heat, saliency, classes, sizes and masks, and centers where they were not given."""
        check.flag(heatmap_only=heatmap_only)
        check_maps(features, self.dims, self.heatmap_conv)
        finest = features[-1]
        heat = match_memory_format(self.heatmap_conv(finest).sigmoid(), finest)
        saliency = match_memory_format(self.saliency_conv(finest), finest)
        if heatmap_only:
            return heat, saliency
        own = centers is None
        at = self._found(heat, zones) if centers is None else check_centers(centers, finest)
        kind, size, shape = self._instances(self._vectors(features, at), at[..., 0] >= 0)
        masks = match_memory_format(self._masks(shape, size.detach(), saliency, at), finest)
        return (heat, saliency, kind, size, masks, *([at] if own else []))

    @torch.no_grad()
    def panoptic(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Instances (B, H, W), 0 for none, and the classes' scores (B, num_classes, H, W)."""
        heat, _, kind, _, masks, at = self(features)
        batch = torch.arange(len(at), device=at.device)[:, None]
        confidence = heat[batch, 0, at[..., 0], at[..., 1]].masked_fill(at[..., 0] < 0, -1)
        accepted = confidence >= self.min_confidence
        return assemble(masks > self.mask_threshold, confidence, accepted, kind, self.min_remain)

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample with `size.steps` centers, without those of the masks."""
        pixels = size.height * size.width
        convs = conv_weights(self.heatmap_conv) + conv_weights(self.saliency_conv)
        linear = [m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear)]
        return pixels * convs + size.steps * sum(linear)

    def _found(self, heat: Tensor, zones: Tensor | None) -> Tensor:
        """Centers (B, n, 2): of the zones, or the peaks of the heat."""
        if zones is None:
            return places(peaks(heat.detach()[:, 0]))
        check_zones(zones, heat[:, 0])
        return places(zone_peaks(heat.detach()[:, 0], zones))

    def _vectors(self, features: Sequence[Tensor], at: Tensor) -> Tensor:
        """(B, n, sum dims): each map at its pixel that covers the center."""
        found = []
        for i, x in enumerate(features):
            rows, columns = (at.clamp(min=0) // 2 ** (len(features) - 1 - i)).unbind(2)
            index = (rows * x.shape[3] + columns)[:, None].expand(-1, x.shape[1], -1)
            found.append(x.flatten(2).gather(2, index))
        return torch.cat(found, 1).mT

    def _instances(self, v: Tensor, real: Tensor) -> tuple[Tensor, ...]:
        """Classes, sizes and shapes, zero where no center is; BatchNorm sees real ones alone.

        Traced calls in train mode give it all: there every center must be real.
        """
        rows, index = v.flatten(0, 1), None
        if self.training and not needs_reference_form(v):
            index = real.flatten().nonzero().squeeze(1)
            rows = rows.index_select(0, index)
            check.batch_norm(self.class_mlp[1], len(rows), rows, grow="number of centers")
        out = []
        for mlp in (self.class_mlp, self.size_mlp, self.shape_mlp):
            y = mlp(rows)
            if index is not None:
                y = y.new_zeros(real.numel(), y.shape[1]).index_copy(0, index, y)
            out.append(y.view(*real.shape, y.shape[1]).masked_fill(~real[..., None], 0))
        return tuple(out)

    def _masks(self, shape: Tensor, size: Tensor, saliency: Tensor, at: Tensor) -> Tensor:
        """(B, n, H, W), computed in windows around the boxes."""
        cells = torch.unflatten(shape, 2, (self.side, self.side))
        dtype = upcast_dtype(shape.dtype)  # halves cannot tell the pixels of a large box apart
        extent = upcast(size).round().clamp(min=1).long()  # B n 2
        start, whole = at - extent // 2, (saliency.shape[2], saliency.shape[3])
        first = start.clamp(min=0)
        windows, resize = [], []
        for axis, pixels in enumerate(whole):
            last = (start + extent)[..., axis].clamp(max=pixels)
            span = window(last - first[..., axis], pixels, self.mask_cnn)
            rows = first[..., axis, None] + torch.arange(span, device=at.device)  # B n P
            kept = (rows < last[..., None]) & (at[..., :1] >= 0)
            one_hot = rows[..., None] == torch.arange(pixels, device=at.device)
            windows.append((one_hot & kept[..., None]).to(cells.dtype))  # B n P H
            weights = resampling(rows, start[..., axis], extent[..., axis], self.side, dtype)
            resize.append((weights * kept[..., None]).to(cells.dtype))
        down, across = windows
        s = resize[0] @ cells @ resize[1].mT  # B n P Q
        z = down @ saliency.to(cells.dtype) @ across.mT
        inside = down.sum(3)[..., None] * across.sum(3)[..., None, :]
        r = ((s + z) if self.mask_cnn is not None else s).flatten(0, 1)[:, None]
        boxes = inside.flatten(0, 1)[:, None]
        other = z.flatten(0, 1)[:, None] if self.mask_cnn is None else self.mask_cnn(r, boxes)
        mask = (r.sigmoid() * other.sigmoid() * boxes).view_as(s)
        return (down.mT @ mask.to(down.dtype) @ across).to(saliency.dtype)

    def extra_repr(self) -> str:
        return f"dims={self.dims}, shape_size={self.side}"


def _hidden(a: int, b: int) -> list[nn.Module]:
    return [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    """Maps whose last has the given size, and `size.steps` centers."""
    steps = [2 ** (len(config["dims"]) - 1 - i) for i in range(len(config["dims"]))]
    k = torch.arange(size.steps)
    centers = torch.stack((3 * k % max(1, size.height), 5 * k % max(1, size.width)), 1)
    return {
        "features": [
            random(size.batch, c, -(-size.height // step), -(-size.width // step))
            for c, step in zip(config["dims"], steps, strict=True)
        ],
        "centers": centers.expand(size.batch, -1, -1),
    }


register(
    "paps",
    PaPs,
    layout="features",
    family="network",
    example={"dims": (6, 4), "num_classes": 3, "shape_size": 4},
    input_size=InputSize(batch=2, steps=5, height=8, width=8),
    inputs=inputs,
    upstream={
        "heatmap_conv.0.conv": "heatmap_conv",
        "saliency_conv.conv": "saliency_conv",
        "min_confidence": None,
        "encoder": None,
    },
)
