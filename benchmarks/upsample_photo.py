"""Shows the output of every upsampler on the features of a photograph.

    python benchmarks/upsample_photo.py --out docs

The photograph is one of the two that scikit-learn ships. Its features are its colors and the
responses of a fixed bank of oriented filters, averaged over patches of 16 x 16 pixels. Every
upsampler gets them, with the photograph as its guidance. No authors' weights exist for these
features and nothing is trained: the parameters have their initial values, so that the picture shows
what each mechanism does before training.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor

import attnzoo

PATCH = 16
ORIENTATIONS, SCALES = 4, (1.0, 2.0)
ABOUT = """\
# Upsamplers on a photograph

This page is written by `python benchmarks/upsample_photo.py --out docs`.

The photograph is `china.jpg`, which scikit-learn ships. Its {channels} features are its colors
and the responses of a fixed bank of oriented filters, averaged over patches of {patch} x {patch}
pixels: {height} x {width} patches. Each upsampler gets these features and, as guidance, the
photograph.

**Nothing is trained.** Every parameter has its initial value, as in the authors' code. The page
therefore does not compare quality; it shows what each mechanism does before training. `bilinear`
and `implicit` have no parameters, so training would not change them. Upsamplers whose output pixels
are weighted sums of source pixels preserve the features: the initial weights of `carafe` and `sapa`
are nearly uniform, which blurs them, and include zeros at the border; those of `jbu_stack` and
`jbu_one` compare pixels of the photograph and follow its edges even without training; a single
`jbu` has a radius of three pixels and stays close to bicubic resizing. `resize_conv` and `ifa` mix
the channels by random weights, so that their colors have no meaning before training. `carafe`,
`sapa` and `ifa` double the size of the source; the others upsample it to the size of the
photograph.

![The photograph, its features, and what each upsampler gives](upsamplers.png)

Colors show the three principal components of the features at full size, the same for every map.

| upsampler | result | parameters | error |
|---|---|---|---|
{rows}
"Error" is the root mean square difference from the features of the photograph itself, averaged to
the size of the result; every feature has unit variance. `implicit` does not upsample: it appends
sines and cosines of the position to an image, three of which are shown. `attnzoo show NAME` prints
the equation of each upsampler.
"""


class Result(NamedTuple):
    """The result of one upsampler."""

    name: str
    features: Tensor  # 1 C H W
    params: int
    error: float | None  # root mean square; None if the channels are not features

    @property
    def title(self) -> str:
        kind = f"{self.params:,} untrained parameters" if self.params else "no parameters"
        return f"{self.name}, {kind}"

    @property
    def row(self) -> str:
        height, width = self.features.shape[2:]
        error = "" if self.error is None else f"{self.error:.2f}"
        return f"| `{self.name}` | {height} x {width} | {self.params:,} | {error} |\n"


def photograph(height: int, width: int) -> Tensor:
    """The middle of the photograph at that size: (1, 3, height, width) in [0, 1]."""
    pixels = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255
    rows, columns = pixels.shape[1:]
    side = min(rows / height, columns / width)
    h, w = int(side * height), int(side * width)
    top, left = (rows - h) // 2, (columns - w) // 2
    cut = pixels[None, :, top : top + h, left : left + w]
    return F.interpolate(cut, (height, width), mode="bilinear", antialias=True)


def filter_bank() -> Tensor:
    """Gabor-like filters, even and odd, of zero mean: (n, 1, 13, 13)."""
    u = torch.arange(-6, 7.0)
    y, x = torch.meshgrid(u, u, indexing="ij")
    filters = []
    for scale in SCALES:
        window = (-(x**2 + y**2) / (2 * (1.5 * scale) ** 2)).exp()
        for i in range(ORIENTATIONS):
            angle = math.pi * i / ORIENTATIONS
            along = (x * math.cos(angle) + y * math.sin(angle)) * math.pi / (2 * scale)
            for wave in (along.cos(), along.sin()):
                f = window * wave
                f = f - window * f.sum() / window.sum()
                filters.append(f / f.norm())
    return torch.stack(filters)[:, None]


def features(photo: Tensor) -> Tensor:
    """Colors and the energy of each filter, locally averaged: (1, C, H, W), of unit variance."""
    gray = F.pad(photo.mean(1, keepdim=True), (6,) * 4, mode="reflect")
    waves = F.conv2d(gray, filter_bank()).unflatten(1, (-1, 2)).square().sum(2).sqrt()
    smooth = F.avg_pool2d(F.pad(torch.cat((photo, waves), 1), (2,) * 4, mode="reflect"), 5, 1)
    return _normalized(smooth)


def _normalized(x: Tensor) -> Tensor:
    """Every channel with zero mean and unit variance."""
    centered = x - x.mean((2, 3), keepdim=True)
    return centered / centered.std((2, 3), keepdim=True)


@torch.no_grad()
def upsample(name: str, photo: Tensor, target: Tensor) -> Result:
    """Run one upsampler, with its initial parameters, on the features of the patches."""
    torch.manual_seed(0)
    source, guide = F.avg_pool2d(target, PATCH), _normalized(photo)
    block = attnzoo.build(name, target.shape[1]).eval()
    params = sum(p.numel() for p in block.parameters())
    if name == "implicit":
        waves = block(target)[:, 4:13:4]  # three frequencies along the rows
        return Result(name, waves, params, None)
    scale = getattr(block, "scale", PATCH)  # sapa: the guidance is `scale` times the source
    if name in ("jbu", "bilinear", "sapa"):
        guide = F.avg_pool2d(guide, PATCH // scale)
    y = block(source, guide)
    wanted = F.avg_pool2d(target, target.shape[2] // y.shape[2])
    return Result(name, y, params, F.mse_loss(y, wanted).sqrt().item())


def colors(maps: Sequence[Tensor], like: Tensor) -> list[np.ndarray]:
    """Each map projected on the three principal components of `like`, as RGB: (H, W, 3)."""
    flat = like[0].flatten(1)
    axes = torch.linalg.svd(flat @ flat.T)[0][:, :3]
    axes = axes * axes.sum(0).sign()
    shown = axes.T @ flat
    low, high = shown.quantile(0.02, 1), shown.quantile(0.98, 1)
    images = []
    for m in maps:
        rgb = torch.einsum("cn,chw->hwn", axes, m[0])
        images.append(((rgb - low) / (high - low)).clamp(0, 1).numpy())
    return images


def picture(photo: Tensor, target: Tensor, results: Sequence[Result], path: Path) -> None:
    """Plot the photograph, its features at both sizes, and the result of each upsampler."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    maps = [F.avg_pool2d(target, PATCH), target]
    painted = colors([*maps, *(r.features for r in results if r.error is not None)], target)
    painted += [_as_image((r.features + 1) / 2) for r in results if r.error is None]
    results = sorted(results, key=lambda r: r.error is None)
    titles = [
        "the photograph",
        f"features of {PATCH} x {PATCH} patches: the source",
        "features of every pixel: what is wanted",
        *(r.title for r in results),
    ]
    columns, wide = 3, 3.2
    rows = -(-len(titles) // columns)
    tall = wide * photo.shape[2] / photo.shape[3] + 0.3
    figure, places = pyplot.subplots(
        rows, columns, figsize=(columns * wide, rows * tall), layout="constrained", squeeze=False
    )
    for place in places.flat:
        place.axis("off")
    for place, image, title in zip(places.flat, [_as_image(photo), *painted], titles, strict=False):
        place.imshow(image, interpolation="nearest")
        place.set_title(title, fontsize=9)
    figure.savefig(path, dpi=62)
    pyplot.close(figure)


def _as_image(x: Tensor) -> np.ndarray:
    return x[0].clamp(0, 1).permute(1, 2, 0).numpy()


def document(target: Tensor, results: Sequence[Result]) -> str:
    """The text of docs/upsamplers.md."""
    height, width = target.shape[2] // PATCH, target.shape[3] // PATCH
    rows = "".join(r.row for r in results)
    return ABOUT.format(
        channels=target.shape[1], patch=PATCH, height=height, width=width, rows=rows
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of both files")
    parser.add_argument("--size", type=int, nargs=2, default=(192, 288), metavar=("H", "W"))
    options = parser.parse_args(arguments)
    height, width = options.size
    if height % PATCH or width % PATCH or min(height, width) < 3 * PATCH:
        parser.error(f"--size must be multiples of {PATCH}, {3 * PATCH} at least")
    photo = photograph(height, width)
    target = features(photo)
    results = [upsample(name, photo, target) for name in attnzoo.names(family="upsampler")]
    picture(photo, target, results, options.out / "upsamplers.png")
    (options.out / "upsamplers.md").write_text(document(target, results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
