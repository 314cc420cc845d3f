"""Times `utae`, and measures its memory, beside the authors' own code.

    python benchmarks/utae_authors.py --upstream ~/checkouts --out benchmarks/results/cpu

The folder contains a checkout of VSainteuf/utae-paps. Both networks have the same weights and get
the same 24 dates; their outputs are compared first. Samples alternate, and times are those of the
processor, of one thread, so that other work on the machine slows down both alike. Saved memory is
what autograd keeps between the passes; the peak is the growth of a process that runs one step.
"""

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.cost import counter
from attnzoo.reference.closeness import half_the_digits, relative_errors, root_mean_square

from peer_layers import PEERS

(PEER,) = (peer for peer in PEERS if peer.block == "utae")
SHAPE = (2, 24, 10, 128, 128)


class Series(NamedTuple):
    """The input of both networks."""

    x: Tensor  # B T C H W
    days: Tensor  # B T

    @classmethod
    def drawn(cls, shape: Sequence[int], padded: int) -> "Series":
        """Random images, five days apart; the second sample's last dates are padded."""
        x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        if padded:
            x[1:, -padded:] = 0
        return cls(x, 5 * torch.arange(shape[1]).expand(shape[0], -1))


def networks(c: int, upstream: Path) -> dict[str, nn.Module]:
    """Ours and theirs, with the same weights and without dropout."""
    config = attnzoo.registry.find("utae").bind(c=c, dropout=0.0)
    torch.manual_seed(0)
    theirs = PEER.build(config, upstream, attnzoo.InputSize())
    for layer in theirs.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    ours = attnzoo.from_upstream("utae", theirs.state_dict(), **config)
    return {"attnzoo": ours, "authors": theirs}


def output(net: nn.Module, series: Series) -> Tensor:
    """The scores of either network."""
    keyword = "positions" if isinstance(net, attnzoo.UTAE) else "batch_positions"
    scores: Tensor = net(series.x, **{keyword: series.days})
    return scores


def runner(net: nn.Module, series: Series, train: bool) -> Callable[[], Tensor]:
    """One prediction, or one forward and backward pass."""

    def run() -> Tensor:
        net.train(train)
        with torch.set_grad_enabled(train):
            y = output(net, series)
            if train:
                net.zero_grad()
                y.square().mean().backward()
        return y.detach()

    return run


def agreement(nets: dict[str, nn.Module], series: Series) -> float:
    """The difference of the outputs in eval mode, relative to their root mean square."""
    found, wanted = ({"y": runner(net, series, False)()} for net in nets.values())
    (error,) = relative_errors(found, wanted, size=root_mean_square).values()
    return error


def times(nets: dict[str, nn.Module], series: Series, train: bool, n: int) -> list[list[float]]:
    """Seconds of the processor of alternating samples, ours and theirs."""
    found: list[list[float]] = [[], []]
    for _ in range(n):
        for each, net in zip(found, nets.values(), strict=True):
            start = time.process_time()
            runner(net, series, train)()
            each.append(time.process_time() - start)
    return found


def saved(net: nn.Module, series: Series) -> int:
    """Bytes that autograd keeps for the backward pass, without parameters and inputs."""
    outside = (*net.parameters(), *net.buffers(), *series)
    net.train()
    return counter.saved_bytes(lambda: output(net, series), outside)


def peak(which: str, train: bool, upstream: Path, shape: Sequence[int]) -> float:
    """MiB by which one call makes a fresh process grow."""
    torch.set_num_threads(1)
    run = runner(networks(shape[2], upstream)[which], Series.drawn(shape, 0), train)
    before = _largest_memory()
    run()
    return _largest_memory() - before


def _largest_memory() -> float:
    """MiB of this process at its largest, as Linux counts; getrusage begins with the parent's."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return float(line.split()[1]) / 1024


def study(options: argparse.Namespace) -> dict[str, Any]:
    """All measurements."""
    shape, upstream = tuple(options.shape), options.upstream
    nets = networks(shape[2], upstream)
    small = (2, 5, shape[2], 32, 32)
    errors = [agreement(nets, Series.drawn(small, padded)) for padded in (0, 2)]
    if max(errors) > half_the_digits(torch.float32):
        raise RuntimeError(f"outputs differ by {max(errors):.1e}: nothing was timed")
    series = Series.drawn(shape, 0)
    row: dict[str, Any] = {"shape": shape, "outputs": errors, "commit": PEER.version(upstream)}
    for kind, train in (("prediction", False), ("training", True)):
        row[f"{kind}_s"] = times(nets, series, train, options.samples)
    row["saved_bytes"] = [saved(net, series) for net in nets.values()]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for kind, train in (("prediction", False), ("training", True)):
            calls = [(which, train, upstream, shape) for which in nets]
            row[f"{kind}_mib"] = pool.starmap(peak, calls, chunksize=1)
    return row


def page(row: dict[str, Any], command: str) -> str:
    """The table."""
    shape, count = " x ".join(map(str, row["shape"])), len(row["prediction_s"][0])
    lines = [
        f"`{command}`",
        "",
        f"{_processor()}, one thread, float32, torch {torch.__version__}. An image series {shape}, "
        f"all dates present; the authors' code is {PEER.source} @{row['commit']}. Same weights; "
        f"outputs differ by {max(row['outputs']):.0e} of their root mean square, with padded dates "
        "too. Times are of the processor, the least of "
        f"{count} alternating samples and in brackets the largest; "
        "the ratio is that of the least, in brackets the smallest and largest of the pairs.",
        "",
        "| | `utae` | the authors' | theirs / ours |",
        "|---|---:|---:|---:|",
    ]
    for kind, title in (("prediction", "prediction"), ("training", "forward and backward")):
        ours, theirs = row[f"{kind}_s"]
        pairs = [b / a for a, b in zip(ours, theirs, strict=True)]
        cells = [f"{min(t):.2f} s ({max(t):.2f})" for t in (ours, theirs)]
        ratio = f"{min(theirs) / min(ours):.2f} ({min(pairs):.2f} to {max(pairs):.2f})"
        lines.append(f"| {title} | {cells[0]} | {cells[1]} | {ratio} |")
    for key, title, unit in (
        ("saved_bytes", "saved for the backward pass", 2**20),
        ("prediction_mib", "peak of a prediction", 1),
        ("training_mib", "peak of forward and backward", 1),
    ):
        ours, theirs = (value / unit for value in row[key])
        lines.append(
            f"| {title} | {ours:.0f} MiB | {theirs:.0f} MiB | {theirs / max(ours, 1):.2f} |"
        )
    return "\n".join([*lines, ""])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", type=Path, metavar="DIR", required=True)
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--shape", type=int, nargs=5, default=SHAPE, metavar="N")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    row = study(options)
    shape = f" --shape {' '.join(map(str, options.shape))}" if row["shape"] != SHAPE else ""
    command = (
        f"python benchmarks/utae_authors.py --upstream ~/checkouts --samples {options.samples}"
    )
    text = page(row, f"{command}{shape} --out benchmarks/results/cpu")
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "utae_authors.json").write_text(json.dumps(row, indent=1) + "\n")
        (options.out / "utae_authors.md").write_text(text)


if __name__ == "__main__":
    main()
