"""Forecasts two series that statsmodels ships, beside the last season again.

    python benchmarks/forecast.py --out docs

`unet_tsf` is a forecaster; `pyraformer` and `dilated_inception` get a linear layer before and one
behind, which reads the last step. All see each window with its own mean and deviation. The
baselines repeat the last season, with and without the change since the one before, and the mean
season.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from statsmodels.datasets import co2, elnino
from torch import Tensor, nn

import attnzoo
from attnzoo.networks.unet_tsf import statistics as of_window

from studies import pyplot, save

ABOUT = """\
# Forecasting

This page is written by `python benchmarks/forecast.py --out docs`.

Two monthly series that statsmodels ships: the carbon dioxide at Mauna Loa (March 1958 to December
2001, the means of the months, gaps filled linearly) and the sea surface temperature of El Niño
(1950 to 2010). From {length} months the next {horizon} are forecast. The first 70 % of a series are
for training, the next 15 % choose the epoch, and the last 15 % are forecast, from every month on.
Errors are mean absolute errors in the units of the series, over {seeds} seeds: the mean, and the
smallest and largest.

{tables}"The last season" repeats the last twelve months; "and its change" adds what they differ on
average from the twelve before; "the mean season" is the mean of each month over the {length}
months. Networks were trained for {epochs} epochs of Adam with one setting for both series, which
was not searched for.

{verdict}

![A forecast of each series](forecasts.png)
"""


class Series(NamedTuple):
    """A monthly series."""

    name: str
    values: Tensor  # T


def series() -> list[Series]:
    """Both series."""
    weekly = co2.load_pandas().data["co2"]
    monthly = weekly.resample("MS").mean().interpolate().to_numpy()
    table = elnino.load_pandas().data.iloc[:, 1:].to_numpy()
    return [
        Series("carbon dioxide, ppm", torch.from_numpy(np.array(monthly)).float()),
        Series("sea surface temperature, degrees C", torch.from_numpy(table.ravel()).float()),
    ]


class Forecaster(nn.Module):
    """A block between two linear layers, on windows of mean 0 and deviation 1."""

    def __init__(self, block: nn.Module, width: int, horizon: int, read: int) -> None:
        super().__init__()
        self.into, self.block = nn.Linear(1, width), block
        self.out = nn.Linear(read, horizon)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 1) to (B, horizon, 1)."""
        mean, deviation = of_window(x.mT)
        z = (x - mean) / deviation
        step = self.block(self.into(z))[:, -1]  # B read
        return self.out(step)[..., None] * deviation + mean


def models(length: int, horizon: int) -> dict[str, Callable[[], nn.Module]]:
    """A maker of each."""

    def pyraformer() -> nn.Module:
        block = attnzoo.build("pyraformer", c=16, windows=(3, 4), n_layers=2, output="gather")
        return Forecaster(block, 16, horizon, read=48)

    def inception() -> nn.Module:
        layers = [attnzoo.build("dilated_inception", c=16, dilation=d, gated=True) for d in (1, 3)]
        return Forecaster(nn.Sequential(*layers), 16, horizon, read=16)

    return {
        "unet_tsf": lambda: attnzoo.build("unet_tsf", c=1, length=length, horizon=horizon),
        "pyraformer": pyraformer,
        "dilated_inception": inception,
    }


def windows(values: Tensor, first: int, last: int, length: int, horizon: int) -> tuple[Tensor, ...]:
    """Pasts (n, length, 1) and futures (n, horizon, 1) whose futures lie within [first, last)."""
    starts = range(max(0, first - length), last - length - horizon + 1)
    rows = torch.stack([values[s : s + length + horizon] for s in starts])[..., None]
    return rows[:, :length], rows[:, length:]


def season(past: Tensor, horizon: int, change: bool) -> Tensor:
    """The last twelve months again, with the change since the twelve before."""
    again = past[:, -12:].repeat(1, -(-horizon // 12), 1)[:, :horizon]
    if not change:
        return again
    years = torch.arange(horizon)[:, None] // 12 + 1
    return again + years * (past[:, -12:] - past[:, -24:-12]).mean(1, keepdim=True)


def mean_season(past: Tensor, horizon: int) -> Tensor:
    """The mean of each month over the whole past."""
    year = past.unflatten(1, (-1, 12)).mean(1)  # n 12 1
    return year.repeat(1, -(-horizon // 12), 1)[:, :horizon]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().mean())


def trained(make: Callable[[], nn.Module], values: Tensor, seed: int, at: "Setting") -> nn.Module:
    """The network of the epoch that forecasts the second part best."""
    torch.manual_seed(seed)
    net, (one, two) = make(), _cuts(values)
    past, future = windows(values, 0, one, at.length, at.horizon)
    check = windows(values, one, two, at.length, at.horizon)
    _, scale = of_window(past.mT)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    best, kept = float("inf"), {}
    for _ in range(at.epochs):
        net.train()
        for rows in torch.randperm(len(past)).split(32):
            loss = F.l1_loss(net(past[rows]) / scale[rows], future[rows] / scale[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            found = error(net(check[0]), check[1])
        if found < best:
            best, kept = found, {k: v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(kept)
    return net


class Setting(NamedTuple):
    """Months seen, months forecast, epochs of training."""

    length: int
    horizon: int
    epochs: int


def _cuts(values: Tensor) -> tuple[int, int]:
    return int(0.7 * len(values)), int(0.85 * len(values))


def study(one: Series, at: Setting, seeds: int) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Errors of each forecaster, and their forecasts of one window."""
    past, future = windows(one.values, _cuts(one.values)[1], len(one.values), at.length, at.horizon)
    errors, shown = {}, {"past": past[0, :, 0], "what came": future[0, :, 0]}
    for name, found in (
        ("the last season", season(past, at.horizon, change=False)),
        ("the last season and its change", season(past, at.horizon, change=True)),
        ("the mean season", mean_season(past, at.horizon)),
    ):
        errors[name], shown[name] = [error(found, future)], found[0, :, 0]
    for name, make in models(at.length, at.horizon).items():
        nets = [trained(make, one.values, seed, at) for seed in range(seeds)]
        with torch.no_grad():
            found = [net(past) for net in nets]
        errors[f"`{name}`"] = [error(f, future) for f in found]
        shown[name] = found[0][0, :, 0]
    return errors, shown


def table(one: Series, errors: dict[str, list[float]]) -> str:
    lines = [f"| {one.name} | mean absolute error | over seeds |\n|---|---|---|\n"]
    for name, values in errors.items():
        spread = f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else ""
        lines.append(f"| {name} | {statistics.mean(values):.3f} | {spread} |\n")
    return "".join(lines) + "\n"


def verdict(results: Sequence[tuple[Series, dict[str, list[float]]]]) -> str:
    """Which networks are better than the best baseline for every seed, and which are not."""
    lines = []
    for one, errors in results:
        bar = min(values[0] for name, values in errors.items() if not name.startswith("`"))
        nets = {name: values for name, values in errors.items() if name.startswith("`")}
        better = [name for name, values in nets.items() if max(values) < bar]
        worse = [name for name, values in nets.items() if min(values) > bar]
        mixed = [name for name in nets if name not in better + worse]
        parts = [
            f"{kind}: {', '.join(names)}"
            for kind, names in (
                ("better than the best baseline for every seed", better),
                ("worse for every seed", worse),
                ("better or worse by the seed", mixed),
            )
            if names
        ]
        lines.append(f"- {one.name.split(',')[0]}: {'; '.join(parts)}.")
    return "\n".join(lines)


def picture(results: Sequence[tuple[Series, dict[str, Tensor]]], path: Path) -> None:
    """Plot one window of each series."""
    figure, places = pyplot().subplots(1, 2, figsize=(10, 3), layout="constrained")
    for place, (one, shown) in zip(places, results, strict=True):
        past = shown["past"]
        place.plot(range(len(past)), past, color="black", linewidth=1)
        for name, values in shown.items():
            if name != "past":
                at = range(len(past), len(past) + len(values))
                strong = name == "what came"
                place.plot(at, values, label=name, linewidth=2 if strong else 1)
        place.set_title(one.name, fontsize=9)
        place.set_xlabel("months", fontsize=8)
    places[0].legend(fontsize=7)
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of both files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(arguments)
    at = Setting(length=72, horizon=24, epochs=options.epochs)
    found = []
    for one in series():
        start = time.process_time()
        found.append((one, *study(one, at, options.seeds)))
        print(one.name, found[-1][1], f"{time.process_time() - start:.0f} s of CPU", flush=True)
    picture([(one, shown) for one, _, shown in found], options.out / "forecasts.png")
    text = ABOUT.format(
        length=at.length,
        horizon=at.horizon,
        seeds=options.seeds,
        epochs=at.epochs,
        tables="".join(table(one, errors) for one, errors, _ in found),
        verdict=verdict([(one, errors) for one, errors, _ in found]),
    )
    (options.out / "forecasting.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
