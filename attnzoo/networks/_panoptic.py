"""From heat to centers, the convolutions of boxes, and from masks to one panoptic map."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd import needs_reference_form
from ..ops.folding import is_plain
from ..ops.precision import upcast
from ..validation import check


def peaks(heat: Tensor) -> Tensor:
    """True where (B, H, W) is the largest of its 3 x 3 window and above the mean of its image."""
    largest = F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0]
    return (heat == largest) & (heat > heat.mean((1, 2), keepdim=True))


def zone_peaks(heat: Tensor, zones: Tensor) -> Tensor:
    """True at the pixel of the highest heat of each id of `zones` (B, H, W), negative ones apart.

    The first in reading order, of equal ones.
    """
    by_heat = heat.flatten(1).argsort(dim=1, descending=True, stable=True)
    ids = zones.flatten(1).gather(1, by_heat)
    ids, order = ids.sort(dim=1, stable=True)
    first = torch.ones_like(ids, dtype=torch.bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    found = torch.zeros_like(first).scatter(1, by_heat.gather(1, order), first & (ids >= 0))
    return found.view_as(heat)


def places(mask: Tensor) -> Tensor:
    """Rows and columns (B, n, 2) of the True pixels in reading order, -1 behind an image's last."""
    counts = mask.flatten(1).sum(1)
    n = int(counts.max()) if len(counts) else 0
    order = mask.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :n]
    found = torch.stack((order // mask.shape[2], order % mask.shape[2]), 2)
    beyond = torch.arange(n, device=mask.device) >= counts[:, None]
    return found.masked_fill(beyond[..., None], -1)


def assemble(
    masks: Tensor, confidence: Tensor, accepted: Tensor, scores: Tensor, min_remain: float
) -> tuple[Tensor, Tensor]:
    """Masks (B, n, H, W) painted by falling confidence (B, n), each where nothing is painted yet.

    A mask that meets painted pixels needs more than the share `min_remain` of its own free.
    Returns ids (B, H, W), the rank of the confidence from 1, and the scores (B, K, H, W) of what
    was painted, 0 elsewhere.
    """
    batch = torch.arange(len(masks), device=masks.device)
    ids = torch.zeros_like(masks[:, :1].sum(1), dtype=torch.long)
    out = scores.new_zeros(len(masks), scores.shape[2], *masks.shape[2:])
    order = confidence.argsort(dim=1, descending=True, stable=True)
    for rank in range(masks.shape[1]):
        pick = order[:, rank]
        mask = masks[batch, pick]
        free = mask & (ids == 0)
        remain = free.sum((1, 2)) > min_remain * mask.sum((1, 2))
        alone = (free == mask).all(2).all(1)
        painted = free & (accepted[batch, pick] & (alone | remain))[:, None, None]
        ids = ids.masked_fill(painted, rank + 1)
        out = torch.where(painted[:, None], scores[batch, pick][..., None, None], out)
    return ids, out


class BoxNorm(nn.GroupNorm):
    """GroupNorm of one group over the pixels of a box, (N, C, P, Q) and (N, 1, P, Q)."""

    def forward(self, x: Tensor, inside: Tensor) -> Tensor:  # type: ignore[override]
        share = inside / (inside.sum((2, 3), keepdim=True) * x.shape[1]).clamp(min=1)
        wide = upcast(x)
        mean = (wide * share).sum((1, 2, 3), keepdim=True)
        variance = ((wide - mean).square() * share).sum((1, 2, 3), keepdim=True)
        unit = (wide - mean) / (variance + self.eps).sqrt()
        return (unit * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class MaskCNN(nn.Sequential):
    """Three convolutions of each box by itself: what is outside is zero before each."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            BoxNorm(1, 16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 1, 3, padding=1),
        )

    def is_plain(self) -> bool:
        """Whether every layer is as it was built."""
        kinds = (nn.Conv2d, BoxNorm, nn.ReLU, nn.Conv2d, nn.ReLU, nn.Conv2d)
        return all(is_plain(layer, kind) for layer, kind in zip(self, kinds, strict=True))

    def forward(self, r: Tensor, inside: Tensor) -> Tensor:  # type: ignore[override]
        x = self[2](self[1](self[0](r), inside)) * inside
        out: Tensor = self[5](self[4](self[3](x)) * inside)
        return out


def window(extents: Tensor, pixels: int, cnn: MaskCNN | None) -> int:
    """Pixels of a window that holds every box, where the largest can be read, else the image's.

    A device would have to be waited for, and what was added to a layer may depend on the size.
    """
    changed = cnn is not None and not cnn.is_plain()
    read = extents.device.type == "cpu" and not needs_reference_form(extents)
    if changed or not read or not extents.numel():
        return pixels
    return int(extents.max().clamp(1, pixels))


def check_maps(features: Sequence[Tensor], dims: Sequence[int], like: nn.Module) -> None:
    """Maps that halve the last one's size, rounded up, and can be reflected."""
    check.listed(features, len(dims), name="features")
    rows, columns = features[-1].shape[2:] if features[-1].ndim == 4 else (0, 0)
    for i, (x, c) in enumerate(zip(features, dims, strict=True)):
        check.image(x, c, like, name=f"features[{i}]")
        check.same_batch(**{"features[0]": features[0], f"features[{i}]": x})
        step = 2 ** (len(dims) - 1 - i)
        if (x.shape[2], x.shape[3]) != (-(-rows // step), -(-columns // step)):
            raise ValueError(
                f"features[{i}] is {x.shape[2]} x {x.shape[3]}; beside a last map of {rows} x "
                f"{columns} it must be {-(-rows // step)} x {-(-columns // step)}: pass the maps "
                "of utae(..., features=True), deepest first"
            )
    if min(rows, columns) < 2:
        raise ValueError(
            f"features[-1] has shape {tuple(features[-1].shape)}; its borders are reflected, "
            "which needs at least 2 x 2 pixels"
        )


def check_zones(zones: Tensor, heat: Tensor) -> None:
    """`zones` are ids, one for each pixel of `heat` (B, H, W)."""
    check.dense("zones", zones, f"of shape {tuple(heat.shape)}")
    if zones.shape != heat.shape or zones.is_floating_point() or zones.is_complex():
        raise ValueError(
            f"zones is {zones.dtype} of shape {tuple(zones.shape)}; it must be ids, whole numbers "
            f"of shape {tuple(heat.shape)}"
        )


def check_centers(centers: Tensor, finest: Tensor) -> Tensor:
    """`centers` of the images, each inside or -1."""
    wanted = f"(B, n, 2) of rows and columns with B={finest.shape[0]}"
    check.dense("centers", centers, wanted)
    if centers.ndim != 3 or centers.shape[2] != 2 or centers.shape[0] != finest.shape[0]:
        raise ValueError(f"centers has shape {tuple(centers.shape)}; it must be {wanted}")
    if centers.is_floating_point() or centers.is_complex() or centers.dtype == torch.bool:
        raise TypeError(f"centers is {centers.dtype}; it must be whole numbers: centers.long()")
    look = centers.device.type == "cpu" and not needs_reference_form(centers)  # no wait on CUDA
    size = torch.tensor(finest.shape[2:]) if look else None
    if size is not None and ((centers >= size) | (centers < -1)).any():
        raise ValueError(
            f"centers has rows and columns from {centers.amin((0, 1)).tolist()} to "
            f"{centers.amax((0, 1)).tolist()}; the image is {size[0]} x {size[1]}, and -1 is none"
        )
    return centers
