"""Trains `utae` and `paps` on generated image series of fields, and shows what they learned.

    python benchmarks/parcels.py --out docs

Every scene is cut into parcels, each of one crop. A crop has a calendar, the days at which it
greens and ripens; a parcel follows it some days early or late. The dates of a scene are drawn at
random, and some are missing. Every parcel, its crop and its box are known, so that the answers of
both networks can be scored on scenes that neither was trained on.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnzoo

from studies import fit, mean_iou, parameters, pyplot, save, show

CROPS = ("winter cereal", "rapeseed", "maize", "vegetables", "grass")
CALENDAR = ((60, 190), (50, 165), (160, 270), (120, 215), (70, 300))  # green from, ripe at; days
SIDE, DATES, BANDS = 32, 12, 4
WIDTHS = {"encoder_widths": (16, 16, 32), "decoder_widths": (16, 16, 32)}
CONFIG = {**WIDTHS, "c": BANDS, "out_conv": (16, len(CROPS)), "heads": 4, "d_model": 32}
ABOUT = """\
# Fields from image series

This page is written by `python benchmarks/parcels.py --out docs`.

The scenes are generated: {side} x {side} pixels cut into parcels, each of one of {crops} crops,
seen in {bands} bands at {dates} dates drawn at random over the year. Up to half of the dates of a
scene are missing and are marked by a mask. A crop is known by the days at which it greens and
ripens; a parcel is up to ten days early or late, greener or paler than others, and every pixel is
noisy. No single date tells all crops apart. This shows that the networks train and what they
return; it says nothing about real fields.

## Crops: `utae`

A network of {params:,} parameters is trained for {steps} steps of 4 scenes, and scored on 16
new scenes. With the dates in the wrong order, but the same images, it does worse: it reads the
calendar.

| seed | pixels right | mean IoU | pixels right with shuffled days |
|---|---|---|---|
{rows}
![A scene, its crops, the answer, and the attention over the dates](parcels.png)

The attention is that of the four heads of `ltae` at the lowest resolution, averaged over the
scene's pixels (`need_weights=True`). Missing dates, which are not shown, have none.

## Parcels: `paps`

The panoptic head of {head:,} parameters is trained together with a `utae` of the same size on
the same scenes for {parcel_steps} steps, with `zones=` for the centers: the focal loss of the heat,
cross entropy of the crops, the difference of the logarithms of the boxes' sizes and binary cross
entropy within the boxes. `panoptic` then finds the parcels of 16 new scenes. A parcel counts as
found where its overlap with an answer of the same crop is more than half of their union.

| seed | parcels found | of the answers right | panoptic quality |
|---|---|---|---|
{parcel_rows}
![The parcels of four scenes, and those that were found](parcels-found.png)
"""


class Scenes(NamedTuple):
    """A batch: images, their days, the missing dates, and the truth."""

    x: Tensor  # B T C H W
    days: Tensor  # B T
    missing: Tensor  # B T
    crops: Tensor  # B H W
    parcels: Tensor  # B H W, ids from 0


def scenes(count: int, random: torch.Generator) -> Scenes:
    """Draw scenes."""
    parcels = torch.stack([_parcels(random) for _ in range(count)])
    each = int(parcels.max()) + 1
    crop = torch.randint(len(CROPS), (count, each), generator=random)
    days = (torch.rand(count, DATES, generator=random) * 365).sort(1).values.round()
    missing = (
        torch.rand(count, DATES, generator=random) < torch.rand(count, 1, generator=random) / 2
    )
    missing[:, 0] = False
    green, ripe = (torch.tensor(CALENDAR, dtype=torch.float)[crop]).unbind(2)
    shift = 20 * torch.rand(count, each, generator=random) - 10
    height = 0.7 + 0.3 * torch.rand(count, each, generator=random)
    t = days[:, :, None]
    rise = ((t - (green + shift)[:, None]) / 10).sigmoid()
    index = height[:, None] * (rise - ((t - (ripe + shift)[:, None]) / 10).sigmoid())  # B T parcels
    rows = parcels.flatten(1)[:, None].expand(-1, DATES, -1)
    greenness = index.gather(2, rows).unflatten(2, (SIDE, SIDE))
    bands = torch.stack((0.3 - 0.2 * greenness, 0.3 - 0.1 * greenness, 0.25 + 0.5 * greenness), 2)
    bands = torch.cat((bands, 0.4 - 0.2 * greenness[:, :, None] ** 2), 2)
    bands = bands + 0.05 * torch.randn(bands.shape, generator=random)
    of_pixel = crop.gather(1, parcels.flatten(1)).unflatten(1, (SIDE, SIDE))
    return Scenes(4 * bands - 1.2, days.long(), missing, of_pixel, parcels)


def _parcels(random: torch.Generator) -> Tensor:
    """(H, W): the field is halved across its longer side until its parts are small."""
    out = torch.zeros(SIDE, SIDE, dtype=torch.long)
    open_boxes, count = [(0, 0, SIDE, SIDE)], 0
    while open_boxes:
        top, left, rows, columns = open_boxes.pop()
        if rows * columns <= 140 or max(rows, columns) < 12:
            out[top : top + rows, left : left + columns] = count
            count += 1
            continue
        long = max(rows, columns)
        cut = int(long * (0.35 + 0.3 * torch.rand(1, generator=random).item()))
        if rows >= columns:
            open_boxes += [(top, left, cut, columns), (top + cut, left, rows - cut, columns)]
        else:
            open_boxes += [(top, left, rows, cut), (top, left + cut, rows, columns - cut)]
    return out


def trained(seed: int, steps: int) -> nn.Module:
    """A `utae` that names the crop of each pixel."""
    torch.manual_seed(seed)
    random, net = torch.Generator().manual_seed(seed), attnzoo.build("utae", **CONFIG)

    def loss() -> Tensor:
        batch = scenes(4, random)
        scores = net(batch.x, positions=batch.days, key_padding_mask=batch.missing)
        return F.cross_entropy(scores, batch.crops)

    fit(net, loss, steps)
    return net


class Score(NamedTuple):
    """Shares of the pixels, and the mean over crops of intersection over union."""

    right: float
    iou: float
    shuffled: float


@torch.no_grad()
def score(net: nn.Module, test: Scenes) -> Score:
    """Score the crops of new scenes."""
    found = net(test.x, positions=test.days, key_padding_mask=test.missing).argmax(1)
    order = torch.randperm(DATES, generator=torch.Generator().manual_seed(0))
    other = net(test.x, positions=test.days[:, order], key_padding_mask=test.missing).argmax(1)
    right, shuffled = ((labels == test.crops).float().mean().item() for labels in (found, other))
    return Score(right, mean_iou(found, test.crops, len(CROPS)), shuffled)


class Panoptic(nn.Module):
    """A `utae` and the head on its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.utae = attnzoo.build("utae", **CONFIG)
        dims = WIDTHS["decoder_widths"][::-1]
        self.head = attnzoo.build("paps", dims=dims, num_classes=len(CROPS), shape_size=8)

    def maps(self, batch: Scenes) -> list[Tensor]:
        found: list[Tensor] = self.utae(
            batch.x, positions=batch.days, key_padding_mask=batch.missing, features=True
        )
        return found


def boxes(parcels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centers and sizes of each parcel (B, n, 2), and which there are (B, n)."""
    each = parcels[:, None] == torch.arange(int(parcels.max()) + 1)[:, None, None]  # B n H W
    ends = []
    for axis in (3, 2):  # rows, then columns
        there = each.any(axis)
        first = there.long().argmax(2)
        ends.append((first, first + there.sum(2)))
    start, stop = (torch.stack(pair, 2).float() for pair in zip(*ends, strict=True))
    return (start + stop) / 2, stop - start, each.flatten(2).any(2)


def target_heat(parcels: Tensor) -> Tensor:
    """(B, H, W): 1 at the center of each parcel, falling to its sides."""
    center, size, there = boxes(parcels)
    at = torch.arange(SIDE) + 0.5
    y, x = ((at - center[..., k, None]) / (size[..., k, None] / 6).clamp(min=0.7) for k in (0, 1))
    heat = (-(y[..., :, None] ** 2 + x[..., None, :] ** 2) / 2).exp() * there[..., None, None]
    heat = heat / heat.amax((2, 3), keepdim=True).clamp(min=1e-6)
    return heat.amax(1)


def panoptic_loss(net: Panoptic, batch: Scenes) -> Tensor:
    """The four losses, added."""
    heat, _, kind, size, masks, at = net.head(net.maps(batch), zones=batch.parcels)
    wanted, p = target_heat(batch.parcels), heat[:, 0].clamp(1e-4, 1 - 1e-4)
    peak = wanted > 0.999
    focal = torch.where(peak, (1 - p) ** 2 * p.log(), (1 - wanted) ** 4 * p**2 * (1 - p).log())
    loss = -focal.sum() / peak.sum()
    real = at[..., 0] >= 0
    rows, columns = at.clamp(min=0).unbind(2)
    which = torch.arange(len(at))[:, None]
    ids, crops = batch.parcels[which, rows, columns], batch.crops[which, rows, columns]
    loss = loss + F.cross_entropy(kind[real], crops[real])
    _, sizes, _ = boxes(batch.parcels)
    own = sizes.gather(1, ids[..., None].expand(-1, -1, 2))
    loss = loss + (size[real].clamp(min=0.1).log() - own[real].log()).abs().mean()
    truth = (batch.parcels[:, None] == ids[..., None, None]).float()
    inside = (masks.detach() > 0) & real[..., None, None]
    cross = F.binary_cross_entropy(masks[inside].clamp(1e-5, 1 - 1e-5), truth[inside])
    return loss + cross


def trained_panoptic(seed: int, steps: int) -> Panoptic:
    """Both networks, trained together."""
    torch.manual_seed(seed)
    random, net = torch.Generator().manual_seed(seed), Panoptic()
    fit(net, lambda: panoptic_loss(net, scenes(4, random)), steps)
    return net


class Found(NamedTuple):
    """Parcels found of those there are, answers right of those given, and panoptic quality."""

    recall: float
    precision: float
    quality: float


@torch.no_grad()
def score_panoptic(net: Panoptic, test: Scenes) -> tuple[Found, Tensor]:
    """Score the parcels of new scenes, and return their ids."""
    ids, scores = net.head.panoptic(net.maps(test))
    kinds, overlap, matched, answers, parcels = scores.argmax(1), 0.0, 0, 0, 0
    for b in range(len(ids)):
        found = [ids[b] == i for i in ids[b].unique() if i > 0]
        real = [test.parcels[b] == i for i in test.parcels[b].unique()]
        answers, parcels = answers + len(found), parcels + len(real)
        for a in found:
            for r in real:
                iou = float((a & r).sum() / (a | r).sum())
                if iou > 0.5 and kinds[b][a][0] == test.crops[b][r][0]:
                    overlap, matched = overlap + iou, matched + 1
    quality = overlap / (0.5 * (answers + parcels))
    return Found(matched / parcels, matched / max(answers, 1), quality), ids


def picture(net: nn.Module, test: Scenes, path: Path) -> None:
    """Plot one scene: three dates, the crops, the answer and the attention."""
    with torch.no_grad():
        scores, weights = net(
            test.x, positions=test.days, key_padding_mask=test.missing, need_weights=True
        )
    there = (~test.missing[0]).nonzero()[:, 0]
    figure, places = pyplot().subplots(1, 6, figsize=(13, 2.6), layout="constrained")
    for place, t in zip(places, there[[1, len(there) // 2, -2]], strict=False):
        image = ((test.x[0, t, [2, 1, 0]] + 1.2) / 4).clamp(0, 1).permute(1, 2, 0)
        show(place, image, f"day {int(test.days[0, t])}")
    crops: dict[str, Any] = {"cmap": "tab10", "vmin": 0, "vmax": 9}
    show(places[3], test.crops[0], "crops", **crops)
    show(places[4], scores[0].argmax(0), "the answer", **crops)
    share = weights[:, 0].mean((2, 3))[:, there]  # heads dates
    places[5].imshow(share, cmap="magma", aspect="auto")
    days = [str(int(d)) for d in test.days[0, there]]
    heads = [f"head {h + 1}" for h in range(len(share))]
    places[5].set_xticks(range(len(there)), days, fontsize=7, rotation=90)
    places[5].set_yticks(range(len(share)), heads, fontsize=7)
    places[5].set_title("attention over days", fontsize=9)
    save(figure, path)


def picture_of_parcels(test: Scenes, ids: Tensor, path: Path) -> None:
    """Plot the parcels of four scenes, and those found."""
    figure, places = pyplot().subplots(2, 4, figsize=(8, 4.3), layout="constrained")
    for b in range(4):
        pairs = ((test.parcels[b] + 1, "parcels"), (ids[b], "found"))
        for place, (image, title) in zip(places[:, b], pairs, strict=True):
            shown = torch.where(image > 0, image % 19 + 1, 0)
            show(place, shown, title, cmap="tab20", vmin=0, vmax=19)
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the files")
    parser.add_argument("--steps", type=int, default=200, help="of utae")
    parser.add_argument("--parcel-steps", type=int, default=300, help="of utae with paps")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    test = scenes(16, torch.Generator().manual_seed(999))
    rows, parcel_rows = "", ""
    for seed in range(options.seeds):
        start = time.process_time()
        net = trained(seed, options.steps)
        s = score(net, test)
        rows += f"| {seed} | {s.right:.1%} | {s.iou:.1%} | {s.shuffled:.1%} |\n"
        both = trained_panoptic(seed, options.parcel_steps)
        f, ids = score_panoptic(both, test)
        parcel_rows += f"| {seed} | {f.recall:.1%} | {f.precision:.1%} | {f.quality:.1%} |\n"
        print(s, f, f"{time.process_time() - start:.0f} s of CPU", flush=True)
        if seed == 0:
            picture(net, test, options.out / "parcels.png")
            picture_of_parcels(test, ids, options.out / "parcels-found.png")
    text = ABOUT.format(
        side=SIDE,
        crops=len(CROPS),
        bands=BANDS,
        dates=DATES,
        params=parameters(net),
        head=parameters(both.head),
        steps=options.steps,
        parcel_steps=options.parcel_steps,
        rows=rows,
        parcel_rows=parcel_rows,
    )
    (options.out / "parcels.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
