"""Compares the speed of blocks with layers of other libraries and with the authors' code.

    python benchmarks/peers.py --upstream ~/checkouts --compiled --out benchmarks/results/cpu

Both sides get the same inputs, each in its own layout, and, if the weights can be copied, the same
weights; samples alternate as in `attnzoo compare`, so that a machine that slows down slows both. A
ratio is the minimum of their times over the minimum of ours: above 1, ours is faster. Each block is
measured at the size of a network that uses it and at a small one, where calls cost more than
arithmetic.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.bench.compare.interleave import interleave
from attnzoo.bench.job import device_name
from attnzoo.bench.timing import sample
from attnzoo.cost.counter import saved_bytes
from attnzoo.reference.closeness import half_the_digits, relative_errors, root_mean_square
from attnzoo.registry import Entry, InputSize, find
from attnzoo.testing.inputs import (
    call,
    leaves,
    make_inputs,
    map_tensors,
    randomize_parameters,
    tensors,
)

from peer import PACKAGES, Config, MissingPeerError, Peer
from peer_layers import PEERS
from peer_report import chart, line, markdown

Step = Callable[[], Any]
Pair = tuple[Any, Any]

TIE = 0.03  # minimum times that differ by less count as equal
SIDES = (0, 1)  # ours, theirs


class Workload(NamedTuple):
    """A block's config and the size of its input; sequences may be those of several nodes."""

    config: Config
    size: InputSize
    nodes: int = 0  # that the batch consists of, each sample having so many: (B, N, T, C)


GATE, MAP, TINY = InputSize(2, 1, 56, 56), InputSize(1, 1, 64, 64), InputSize(1, 1, 14, 14)
GATES = ("se", "cbam", "coordatt", "triplet", "dia", "sknet")
DANET = ("danet_position", "danet_channel")
LTAE = {"c": 128, "heads": 16, "d_model": 256, "mlp": (256, 128)}
PYRAMID = {"c": 256, "windows": (4, 4, 4), "inner": 5}
WINDOWS = {"window": 6, "length": 24}
# In networks that use the blocks, and where calls cost more than arithmetic.
LARGE = {
    **dict.fromkeys(GATES, Workload({"c": 256}, GATE)),
    **dict.fromkeys(DANET, Workload({"c": 512}, MAP)),
    "agent": Workload({"c": 128, "heads": 4, "agents": 49, "window": (56, 56)}, GATE),
    "relu_linear": Workload({"c": 128, "dim": 16}, GATE),
    "swiftformer": Workload({"c": 128}, InputSize(2, 3136)),
    "mamba": Workload({"c": 256}, InputSize(2, 128)),  # the reference scan takes a minute at 512
    "ltae": Workload(LTAE, InputSize(1, 40, 32, 32)),
    "trend_aware": Workload({"c": 64, "heads": 8}, InputSize(4 * 307, 12), 307),
    "pyraformer": Workload(PYRAMID, InputSize(1, 2048)),
    "ct_msa": Workload({"c": 32, **WINDOWS}, InputSize(2 * 1085, 24), 1085),
    "m_gtu": Workload({"c": 32}, InputSize(8 * 307, 12), 307),
    "dilated_inception": Workload({"c": 32}, InputSize(2 * 207, 168), 207),
}
SMALL = {
    **dict.fromkeys(GATES, Workload({"c": 64}, TINY)),
    **dict.fromkeys(DANET, Workload({"c": 256}, TINY)),
    "sknet": Workload({"c": 64}, InputSize(2, 1, 14, 14)),  # BatchNorm takes two samples
    "agent": Workload({"c": 64, "heads": 4, "window": (14, 14)}, TINY),
    "relu_linear": Workload({"c": 64, "dim": 16}, TINY),
    "swiftformer": Workload({"c": 64}, InputSize(1, 196)),
    "mamba": Workload({"c": 64}, InputSize(1, 32)),
    "ltae": Workload(LTAE, InputSize(1, 24, 4, 4)),
    "trend_aware": Workload({"c": 64, "heads": 8}, InputSize(20, 12), 20),
    "pyraformer": Workload({**PYRAMID, "c": 64, "windows": (2, 2, 2)}, InputSize(1, 32)),
    "ct_msa": Workload({"c": 32, **WINDOWS}, InputSize(50, 24), 50),
    "m_gtu": Workload({"c": 32}, InputSize(50, 12), 50),
    "dilated_inception": Workload({"c": 32}, InputSize(20, 24), 20),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; returns 0, or 1 if a peer could not be measured."""
    options = _parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    for peer in PEERS:
        authors = peer.source not in PACKAGES
        if peer.block in options.blocks and (options.upstream or not authors):
            for work in _workloads(peer, options):
                rows.append(measured(peer, work, options))
                print(line(rows[-1]), file=sys.stderr, flush=True)
                write(rows, options.out)  # so that a run that is stopped leaves what it measured
    print(markdown(rows))
    return int(any("error" in row for row in rows))


def write(rows: list[dict[str, Any]], folder: Path | None) -> None:
    """The rows as JSON, as a table and as a chart, into the folder if there is one."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.json").write_text(json.dumps(rows, indent=1) + "\n")
    (folder / "peers.md").write_text(markdown(rows))
    chart(rows, folder / "peers.svg")


def _workloads(peer: Peer, options: argparse.Namespace) -> list[Workload]:
    """The large and the small one, or the example's with the options' channels and size."""
    if peer.block in LARGE and options.c is None and options.size is None:
        return [LARGE[peer.block], SMALL[peer.block]]
    entry = find(peer.block)
    size, side = entry.input_size, options.size
    if side:
        size = size._replace(height=side, width=side, steps=side)
    return [Workload({} if options.c is None else {"c": options.c}, size)]


def measured(peer: Peer, work: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """One peer against our block: whether they agree, and both passes' times.

    An exception of either side becomes the row's `error`.
    """
    row: dict[str, Any] = {"block": peer.block, "peer": f"{peer.source} {peer.name}"}
    try:
        return row | _row(peer, work, options)
    except Exception as error:  # a peer's code may raise anything
        reason = str(error) if isinstance(error, MissingPeerError) else f"{error!r}"
        return row | {"error": reason.split("\n", 1)[0]}


class Match(NamedTuple):
    """A peer and our block with the same inputs and, if they fit, the same weights."""

    config: Config
    inputs: Pair  # ours, theirs: the same numbers, each in its own layout
    blocks: Pair
    calls: Pair  # of a block on its inputs
    outputs: str  # whether they agree


def matched(peer: Peer, work: Workload, options: argparse.Namespace) -> Match:
    """Build both sides of a comparison and say whether they compute the same."""
    entry = find(peer.block)
    config = entry.bind(**{**entry.example, **work.config, **peer.ours})
    torch.manual_seed(0)
    theirs = peer.build(config, options.upstream, work.size)
    randomize_parameters(theirs, by_fan_in=True)
    ours, outputs = _twin(entry, theirs, peer, config)
    inputs = make_inputs(entry, config, work.size, device=options.device)
    if work.nodes:
        inputs = map_tensors(lambda t: t.unflatten(0, (-1, work.nodes)), inputs)
    inputs = leaves(inputs)
    arranged = leaves(map_tensors(lambda t: _arranged(t, peer.axes), inputs))
    blocks = (ours.to(options.device), theirs.to(options.device))
    found = Match(config, (inputs, arranged), blocks, (call, peer.call), outputs)
    if outputs == "equal":
        found = found._replace(outputs=agreement(found, peer.axes))
    return found


def _arranged(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    return tensor.permute(*axes).contiguous() if axes and tensor.ndim == len(axes) else tensor


def _row(peer: Peer, work: Workload, options: argparse.Namespace) -> dict[str, Any]:
    found, timed = matched(peer, work, options), (options.device, options.time)
    for verdict in attnzoo.verify(peer.block):
        if not verdict.passed:
            raise RuntimeError(f"{peer.block} fails its reference case {verdict.case!r}")
    row = {
        "version": peer.version(options.upstream),
        "config": found.config,
        "shape": {key: list(t.shape) for key, t in found.inputs[0].items()},
        "device": options.device,
        "machine": device_name(options.device),
        "command": f"python benchmarks/peers.py --upstream DIR --time {options.time:g}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "attnzoo": attnzoo.__version__,
        "outputs": found.outputs,
        "saved_bytes": [_saved(found, side) for side in SIDES],
        "forward": compared(*(_forward(found, side) for side in SIDES), *timed),
        "training": compared(*(_training(found, side) for side in SIDES), *timed),
    }
    return row | (_compiled(found, *timed) if options.compiled else {})


def _compiled(found: Match, device: str, seconds: float) -> dict[str, Any]:
    """Training steps of the compiled blocks: both, and theirs against the better of ours."""
    torch.compiler.reset()
    ours, theirs = (torch.compile(block, dynamic=False) for block in found.blocks)
    compiled = found._replace(blocks=(ours, theirs))
    steps = [_training(compiled, side) for side in SIDES]
    both = compared(*steps, device, seconds)
    plain = compared(_training(found, 0), steps[1], device, seconds)
    return {"compiled": both, "theirs_compiled": max(both, plain, key=lambda t: t["ratio"])}


def _twin(entry: Entry, theirs: nn.Module, peer: Peer, config: Config) -> tuple[nn.Module, str]:
    """Our block, with their weights if these fit, and whether outputs can be compared."""
    try:
        weights = peer.keys(theirs.state_dict())
        return attnzoo.from_upstream(entry.name, weights, **config), "equal"
    except (ValueError, KeyError):
        return attnzoo.build(entry.name, **config), "not comparable"


def agreement(found: Match, axes: Sequence[int] = ()) -> str:
    """`equal` if outputs and input gradients agree to half of the dtype's digits, in eval mode.

    Else their difference, relative to the root mean square of theirs.
    """
    ours = [_arranged(t, axes) for t in _results(found, 0, axes)]
    theirs = list(_results(found, 1, ()))
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return "differs in shape"
    got, wanted = ({str(i): t for i, t in enumerate(side)} for side in (ours, theirs))
    error = max(relative_errors(got, wanted, size=root_mean_square).values())
    equal = error <= half_the_digits(ours[0].dtype)
    return "equal" if equal else f"differs by {error:.1e}"


def _results(found: Match, side: int, axes: Sequence[int]) -> Iterator[Tensor]:
    """Outputs, and gradients of the inputs; `axes` is the layout in which the seeds are drawn."""
    inputs = found.inputs[side]
    outputs = [t for t in tensors(_run(found, side, train=False)) if t.is_floating_point()]
    wanted = [t for t in tensors(inputs) if t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    back = [axes.index(i) for i in range(len(axes))]
    shapes = [_arranged(t.detach(), axes).shape for t in outputs]
    seeds = [_arranged(torch.randn(shape, generator=generator), back) for shape in shapes]
    yield from (t.detach() for t in outputs)
    seeds = [seed.to(t) for seed, t in zip(seeds, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, wanted, seeds, allow_unused=True)
    yield from (torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True))


def _run(found: Match, side: int, *, train: bool) -> Any:
    return found.calls[side](found.blocks[side].train(train), found.inputs[side])


def _forward(found: Match, side: int) -> Step:
    block, inputs, run = found.blocks[side], found.inputs[side], found.calls[side]

    def step() -> None:
        with torch.inference_mode():
            run(block, inputs)

    block.eval()
    return step


def _training(found: Match, side: int) -> Step:
    block, inputs, run = found.blocks[side], found.inputs[side], found.calls[side]
    wanted = [t for t in (*tensors(inputs), *block.parameters()) if t.requires_grad]
    grads = [torch.randn_like(t) for t in tensors(_run(found, side, train=True)) if t.requires_grad]

    def step() -> None:
        outputs = [t for t in tensors(run(block, inputs)) if t.requires_grad]
        torch.autograd.grad(outputs, wanted, grads, allow_unused=True)

    return step


def _saved(found: Match, side: int) -> int:
    """Bytes that autograd keeps between the passes of one side."""
    block = found.blocks[side]
    outside = (*tensors(found.inputs[side]), *block.parameters(), *block.buffers())
    return saved_bytes(lambda: _run(found, side, train=True), outside)


def compared(ours: Step, theirs: Step, device: str, seconds: float = 1.0) -> dict[str, Any]:
    """Both minimum times of alternating samples in ms, their ratio, and the null's ratio."""
    steps = {
        "a": _settled(ours, device),
        "null": _settled(ours, device),
        "b": _settled(theirs, device),
    }
    calls = min(sample.calls_per_sample(step) for step in steps.values())

    def burst(step: Step) -> Callable[[int], list[float]]:
        return lambda count: sample.times(sample.burst(step, calls, 0.0, count))

    # As many samples as it takes until the null copy agrees, whatever the ratio.
    timing = interleave({name: burst(step) for name, step in steps.items()}, math.inf, seconds)
    return {
        "ours_ms": 1e3 * timing.a,
        "theirs_ms": 1e3 * timing.b,
        "ratio": timing.ratio,
        "null": timing.drift,
        "tie": timing.verdict(TIE) == "same",
        "samples": timing.samples,
    }


def _settled(step: Step, device: str) -> Step:
    """The step after warm-up; on CUDA it waits for the device."""
    for _ in range(3):
        step()
    if torch.device(device).type != "cuda":
        return step

    def both() -> None:
        step()
        torch.cuda.synchronize(device)

    return both


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--blocks",
        type=_blocks,
        default=",".join(peer.block for peer in PEERS),
        help="names, joined by commas; default: all that have a peer",
    )
    parser.add_argument("--upstream", type=Path, metavar="DIR", help="authors' checkouts, DIR/NAME")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write peers.json, .md and .svg")
    parser.add_argument("--time", type=float, default=1.0, help="seconds of samples (%(default)s)")
    parser.add_argument("--compiled", action="store_true", help="also compile both sides")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--c", type=int, help="channels, at the example's size")
    parser.add_argument("--size", type=int, help="image side, or time steps")
    return parser


def _blocks(text: str) -> set[str]:
    known = {peer.block for peer in PEERS}
    found = set(text.split(","))
    if not found <= known:
        raise argparse.ArgumentTypeError(
            f"no peer of {', '.join(sorted(found - known))} is known; there are peers of "
            f"{', '.join(sorted(known))}"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
