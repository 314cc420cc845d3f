"""Trains `adcd_net` on a made-up pair of a multispectral and a panchromatic image.

    python benchmarks/sensors.py --out docs

A class is a spectrum and a texture. The multispectral image shows spectra alone, the panchromatic
one, four times as fine, textures alone, so that no class is known from one image. The authors'
training is compared with the recipe that trains all of the network.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnzoo

from studies import fit, parameters, pyplot, save, show, spread

CLASSES, BANDS, SIDE, PATCH = 4, 4, 48, 8
SPECTRA = ((0.2, 0.3, 0.2, 0.8), (0.4, 0.4, 0.5, 0.5))
CONFIG: dict[str, Any] = {
    "c": BANDS,
    "num_classes": CLASSES,
    "size": (PATCH, PATCH),
    "widths": (16, 32, 16),
    "dims": (32, 32),
    "hidden": 32,
    "loss_widths": (16, 32, 32),
    "state": 8,
}
RECIPES: dict[str, dict[str, Any]] = {
    "the authors'": {},
    "all of it": {"detach": False, "train_metric": False},
}
ABOUT = """\
# Two sensors: `adcd_net`

This page is written by `python benchmarks/sensors.py --out docs`.

The scenes are made up: {side} x {side} pixels in {bands} bands, and a panchromatic image of four
times as many in height and width. A class is one of two spectra with one of two textures. The
bands show the spectrum alone, with noise; the panchromatic image shows the texture alone, as both
have the same mean and variance. From one image half of the pixels can be right. Patches of
{patch} x {patch} and {fine} x {fine} pixels are classified by the class of their middle; one
scene is for training, another for testing. Nothing here says how the network does on real images.

"The authors'" trains stage 1 by its loss for {first} steps, then stage 2 for {steps}, and detaches
what stage 1 gives (`adcd_net`'s defaults). "All of it" trains both stages together for {steps}
steps (`detach=False, train_metric=False`). {params:,} parameters; mean over {seeds} seeds, and the
smallest and largest:

| training | fused | panchromatic branch | multispectral branch | loss of stage 1, first and last |
|---|---|---|---|---|
{rows}
Each branch sees its own image alone, in both stages: that is why neither gets beyond one half.

![The scene for testing and the answers of the three outputs](sensors.png)
"""


class Scene(NamedTuple):
    """Both images and the classes."""

    ms: Tensor  # 1 bands H W
    pan: Tensor  # 1 1 4H 4W
    classes: Tensor  # H W


def scene(seed: int) -> Scene:
    """Draw a scene: the pixels nearest to each of 40 points are of one class."""
    random = torch.Generator().manual_seed(seed)
    points = SIDE * torch.rand(40, 2, generator=random)
    kinds = torch.randint(CLASSES, (40,), generator=random)
    axis = (torch.arange(4 * SIDE) + 0.5) / 4
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), 2).flatten(0, 1)
    fine = kinds[torch.cdist(grid, points).argmin(1)].view(4 * SIDE, 4 * SIDE)
    classes = fine[2::4, 2::4]
    ms = torch.tensor(SPECTRA)[classes // 2].permute(2, 0, 1)[None]
    ms = ms + 0.2 * torch.randn(ms.shape, generator=random)
    rough, noise = torch.randn(2, 1, 1, 4 * SIDE, 4 * SIDE, generator=random)
    smooth = F.avg_pool2d(F.pad(noise, (2,) * 4, mode="reflect"), 5, 1)
    pan = torch.where(fine % 2 == 0, rough, smooth / smooth.std())
    return Scene((ms - 0.4) / 0.3, pan, classes)


def patches(image: Tensor, side: int, stride: int) -> Tensor:
    """(1, C, H, W) to (H W / stride^2, C, side, side), around each pixel or each `stride`-th."""
    before = side // 2
    around = F.pad(image, (before, side - stride - before) * 2, mode="reflect")
    cut = around[0].unfold(1, side, stride).unfold(2, side, stride)  # C h w side side
    return cut.permute(1, 2, 0, 3, 4).flatten(0, 1)


class Pairs(NamedTuple):
    """Patches of every pixel."""

    x: Tensor  # N bands PATCH PATCH
    y: Tensor  # N 1 4PATCH 4PATCH
    classes: Tensor  # N

    @classmethod
    def of(cls, drawn: Scene) -> "Pairs":
        pan = patches(drawn.pan, 4 * PATCH, 4)
        return cls(patches(drawn.ms, PATCH, 1), pan, drawn.classes.flatten())

    def batch(self, random: torch.Generator, count: int = 32) -> "Pairs":
        rows = torch.randint(len(self.x), (count,), generator=random)
        return Pairs(*(t[rows] for t in self))


def trained(
    recipe: str, seed: int, first: int, steps: int, train: Pairs
) -> tuple[nn.Module, list[float]]:
    """The network, and the loss of stage 1 at its first and last step."""
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = attnzoo.build("adcd_net", **CONFIG, **RECIPES[recipe])
    joint, seen = not net.detach, []

    def alike() -> Tensor:
        batch = train.batch(random)
        loss: Tensor = net(batch.x, batch.y, stage=1)[0]
        seen.append(loss.item())
        return loss

    def right() -> Tensor:
        batch = train.batch(random)
        of_both, of_pan, of_ms = (F.cross_entropy(s, batch.classes) for s in net(batch.x, batch.y))
        loss = of_both + 0.8 * (of_pan + of_ms)
        return loss + alike() if joint else loss

    if not joint:
        fit(net, alike, first, rate=2e-3, parameters=net.stage1.parameters())
    own = None if joint else net.stage2.parameters()
    fit(net, right, steps, rate=2e-3, parameters=own)
    return net, [seen[0], seen[-1]]


@torch.no_grad()
def answers(net: nn.Module, test: Pairs) -> Tensor:
    """The classes by all three outputs: (3, N)."""
    parts = zip(test.x.split(512), test.y.split(512), strict=True)
    each = [torch.stack([s.argmax(1) for s in net(x, y)]) for x, y in parts]
    return torch.cat(each, 1)


def picture(drawn: Scene, found: Tensor, path: Path) -> None:
    """Plot the scene, its classes, and the answers."""
    figure, places = pyplot().subplots(1, 6, figsize=(13, 2.5), layout="constrained")
    bands = drawn.ms[0, [3, 1, 0]] * 0.3 + 0.4
    show(places[0], bands.clamp(0, 1).permute(1, 2, 0), "multispectral")
    show(places[1], drawn.pan[0, 0], "panchromatic", cmap="gray")
    options: dict[str, Any] = {"cmap": "tab10", "vmin": 0, "vmax": 9}
    show(places[2], drawn.classes, "classes", **options)
    titles = ("fused", "panchromatic branch", "multispectral branch")
    for place, answer, title in zip(places[3:], found, titles, strict=True):
        show(place, answer.view(SIDE, SIDE), title, **options)
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of both files")
    parser.add_argument("--first", type=int, default=60, help="steps of stage 1 alone")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    train, drawn, rows = Pairs.of(scene(1)), scene(2), ""
    test = Pairs.of(drawn)
    for recipe in RECIPES:
        shares, losses = [], []
        for seed in range(options.seeds):
            net, ends = trained(recipe, seed, options.first, options.steps, train)
            found = answers(net, test)
            shares.append((found == test.classes).float().mean(1).tolist())
            losses.append(ends)
            print(recipe, seed, shares[-1], ends, flush=True)
            if seed == 0:
                shown = found
        cells = [spread(values) for values in zip(*shares, strict=True)]
        start, end = (spread(values, ".2g") for values in zip(*losses, strict=True))
        rows += f"| {recipe} | {' | '.join(cells)} | {start}, {end} |\n"
    picture(drawn, shown, options.out / "sensors.png")
    text = ABOUT.format(
        side=SIDE,
        bands=BANDS,
        patch=PATCH,
        fine=4 * PATCH,
        first=options.first,
        steps=options.steps,
        params=parameters(net),
        seeds=options.seeds,
        rows=rows,
    )
    (options.out / "sensors.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
