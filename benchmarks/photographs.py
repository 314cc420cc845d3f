"""Trains `u_mixformer` on a pyramid of timm, on photographs with made-up labels.

    python benchmarks/photographs.py --out docs

The photographs are the two that scikit-learn ships. Their labels are made up: a rule on the blurred
colors. The left part of each photograph is for training, the right part for testing.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import attnzoo

from studies import fit, mean_iou, parameters, pyplot, save, show, spread

CLASSES = ("pale", "dark", "reddish", "other")
SIZE, CUT, CROP = (192, 288), 160, 96
ENCODER = "pvt_v2_b0"
ABOUT = """\
# Photographs with made-up labels: `u_mixformer`

This page is written by `python benchmarks/photographs.py --out docs`.

The decoder stands on the pyramid of timm's `{encoder}` (`features_only=True`), with random initial
weights: nothing is downloaded. The photographs are `china.jpg` and `flower.jpg`, which scikit-learn
ships, at {height} x {width} pixels. The labels are made up: the blurred colors of a pixel decide
whether it is pale, dark, reddish or something else. The columns left of pixel {cut} are
for training, the others for testing. This shows how the two parts are joined, and that they
train; a rule on colors needs no such network.

The network, {params:,} parameters of which the decoder has {decoder:,}, is trained for {steps}
steps of 4 crops of {crop} x {crop} pixels. Mean over {seeds} seeds, and the smallest and largest:

| | pixels right | mean IoU |
|---|---|---|
| the most frequent class everywhere | {most:.1%} | {most_iou:.1%} |
| `u_mixformer` on `{encoder}` | {right} | {iou} |

![The photographs, their labels, and the answers](photographs.png)

The vertical line separates the part for training from the part for testing.
"""


class Photographs(NamedTuple):
    """Images and labels."""

    x: Tensor  # N 3 H W
    labels: Tensor  # N H W

    def columns(self, which: slice) -> "Photographs":
        return Photographs(self.x[..., which], self.labels[..., which])


def photographs() -> Photographs:
    """Both photographs at `SIZE`, of zero mean and unit variance, and their labels."""
    names = ("china.jpg", "flower.jpg")
    pixels = [torch.from_numpy(load_sample_image(n).copy()).permute(2, 0, 1) for n in names]
    x = F.interpolate(torch.stack(pixels) / 255, SIZE, mode="bilinear", antialias=True)
    return Photographs((x - x.mean()) / x.std(), labels(x))


def labels(x: Tensor) -> Tensor:
    """The made-up rule, on colors in [0, 1]."""
    smooth = F.avg_pool2d(F.pad(x, (4,) * 4, mode="reflect"), 9, 1)
    light, red = smooth.mean(1), smooth[:, 0] - smooth[:, 1]
    rules = torch.stack((light > 0.6, light < 0.25, red > 0.06, torch.ones_like(red) > 0), 1)
    return rules.long().argmax(1)


class Network(nn.Module):
    """timm's encoder, the decoder on its maps, and scores at the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = timm.create_model(ENCODER, pretrained=False, features_only=True)
        dims = self.encoder.feature_info.channels()
        self.decoder = attnzoo.build("u_mixformer", dims=dims, num_classes=len(CLASSES), dim=64)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.decoder(self.encoder(x), size=x.shape[2:])
        return scores


def crops(photos: Photographs, random: torch.Generator, count: int = 4) -> Photographs:
    """Random squares, half of them mirrored."""
    found = []
    for _ in range(count):
        n = int(torch.randint(len(photos.x), (1,), generator=random))
        top, left = (
            int(torch.randint(side - CROP + 1, (1,), generator=random))
            for side in photos.x.shape[2:]
        )
        x = photos.x[n, :, top : top + CROP, left : left + CROP]
        y = photos.labels[n, top : top + CROP, left : left + CROP]
        mirrored = torch.rand(1, generator=random) < 0.5
        found.append((x.flip(2), y.flip(1)) if mirrored else (x, y))
    xs, ys = zip(*found, strict=True)
    return Photographs(torch.stack(xs), torch.stack(ys))


def trained(seed: int, steps: int, photos: Photographs) -> tuple[Network, list[float]]:
    """The network and its losses."""
    torch.manual_seed(seed)
    random, net = torch.Generator().manual_seed(seed), Network()

    def loss() -> Tensor:
        batch = crops(photos, random)
        return F.cross_entropy(net(batch.x), batch.labels)

    return net, fit(net, loss, steps, rate=1e-3)


def picture(photos: Photographs, found: Tensor, path: Path) -> None:
    """Plot the photographs, the labels and the answers."""
    figure, places = pyplot().subplots(2, 3, figsize=(9, 4.3), layout="constrained")
    x = photos.x - photos.x.amin((1, 2, 3), keepdim=True)
    x = x / x.amax((1, 2, 3), keepdim=True)
    options: dict[str, Any] = {"cmap": "tab10", "vmin": 0, "vmax": 9}
    for n, row in enumerate(places):
        show(row[0], x[n].permute(1, 2, 0), "photograph")
        show(row[1], photos.labels[n], "made-up labels", **options)
        show(row[2], found[n], "the answer", **options)
        for place in row:
            place.axvline(CUT - 0.5, color="white", linewidth=1)
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of both files")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    photos, right, ious, answers = photographs(), [], [], []
    train, test = photos.columns(slice(CUT)), photos.columns(slice(CUT, None))
    for seed in range(options.seeds):
        net, losses = trained(seed, options.steps, train)
        with torch.no_grad():
            found = net(test.x).argmax(1)
            answers.append(net(photos.x).argmax(1))
        right.append(float((found == test.labels).float().mean()))
        ious.append(mean_iou(found, test.labels, len(CLASSES)))
        print(seed, losses[0], losses[-1], right[-1], ious[-1], flush=True)
    picture(photos, answers[0], options.out / "photographs.png")
    most = torch.full_like(test.labels, int(train.labels.flatten().mode().values))
    text = ABOUT.format(
        encoder=ENCODER,
        height=SIZE[0],
        width=SIZE[1],
        cut=CUT,
        crop=CROP,
        params=parameters(net),
        decoder=parameters(net.decoder),
        steps=options.steps,
        seeds=options.seeds,
        most=float((most == test.labels).float().mean()),
        most_iou=mean_iou(most, test.labels, len(CLASSES)),
        right=spread(right),
        iou=spread(ious),
    )
    (options.out / "photographs.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
