"""Compares the speed of blocks with layers of other libraries and with the authors' code.

    python benchmarks/peers.py --blocks se,cbam --upstream ~/checkouts --out results

Both sides get the same inputs and, if the weights can be copied, the same weights; samples
alternate as in `attnzoo compare`, so that a machine that slows down slows both. A ratio is the
minimum of their times over the minimum of ours: above 1, ours is faster.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.bench.compare.interleave import interleave
from attnzoo.bench.timing import sample
from attnzoo.reference.closeness import half_the_digits, relative_errors, root_mean_square
from attnzoo.registry import Entry, Inputs, find
from attnzoo.testing.inputs import call, leaves, make_inputs, tensors

from peer_layers import PACKAGES, PEERS, Config, MissingPeerError, Peer

Call = Callable[[Inputs], Any]
Pair = tuple[Any, Any]

TIE = 0.03  # minimum times that differ by less count as equal
COLUMNS = ("block", "peer", "shape", "outputs", "pass", "ours ms", "theirs ms", "theirs / ours")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; returns 0, or 1 if a peer could not be measured."""
    options = _parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    for peer in PEERS:
        authors = peer.source not in PACKAGES
        if peer.block in options.blocks and (options.upstream or not authors):
            rows.append(measured(peer, options))
            print(_line(rows[-1]), file=sys.stderr, flush=True)
    text = markdown(rows, options)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "peers.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / "peers.md").write_text(text)
    return int(any("error" in row for row in rows))


def measured(peer: Peer, options: argparse.Namespace) -> dict[str, Any]:
    """One peer against our block: whether they agree, and both passes' times.

    An exception of either side becomes the row's `error`.
    """
    row: dict[str, Any] = {"block": peer.block, "peer": f"{peer.source} {peer.name}"}
    try:
        return row | _row(peer, options)
    except Exception as error:  # a peer's code may raise anything
        reason = str(error) if isinstance(error, MissingPeerError) else f"{error!r}"
        return row | {"error": reason.split("\n", 1)[0]}


class Match(NamedTuple):
    """A peer and our block with the same inputs and, if they fit, the same weights."""

    config: Config
    inputs: Inputs
    blocks: Pair  # ours, theirs
    sides: Pair  # the calls of both on inputs
    outputs: str  # whether they agree


def matched(peer: Peer, options: argparse.Namespace) -> Match:
    """Build both sides of a comparison and say whether they compute the same."""
    entry = find(peer.block)
    config = _config(entry, peer, options.c)
    extent = entry.input_size
    if options.size:
        extent = extent._replace(height=options.size, width=options.size, steps=options.size)
    torch.manual_seed(0)
    theirs = peer.build(config, options.upstream)
    randomize_parameters(theirs)
    ours, outputs = _twin(entry, theirs, peer, config)
    inputs = leaves(make_inputs(entry, config, extent, device=options.device))
    blocks = (ours.to(options.device), theirs.to(options.device))
    sides = (lambda i: call(blocks[0], i), lambda i: peer.call(blocks[1], i))
    if outputs == "equal":
        outputs = agreement(sides, blocks, inputs)
    return Match(config, inputs, blocks, sides, outputs)


def _row(peer: Peer, options: argparse.Namespace) -> dict[str, Any]:
    found = matched(peer, options)
    for verdict in attnzoo.verify(peer.block):
        if not verdict.passed:
            raise RuntimeError(f"{peer.block} fails its reference case {verdict.case!r}")
    both = found.sides, found.blocks, found.inputs
    return {
        "version": peer.version(options.upstream),
        "config": found.config,
        "shape": {key: list(t.shape) for key, t in found.inputs.items()},
        "device": options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "attnzoo": attnzoo.__version__,
        "outputs": found.outputs,
        "forward": compared(*_forwards(*both), options.device),
        "training": compared(*_trainings(*both), options.device),
    }


def _config(entry: Entry, peer: Peer, c: int | None) -> dict[str, Any]:
    config = {**entry.example, **peer.ours}
    if c is not None:
        config["c"] = c
    return entry.bind(**config)


def randomize_parameters(block: nn.Module) -> None:
    """Set random weights and statistics, since gates and biases of zero would hide errors."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in block.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def _twin(entry: Entry, theirs: nn.Module, peer: Peer, config: Config) -> tuple[nn.Module, str]:
    """Our block, with their weights if these fit, and whether outputs can be compared."""
    try:
        weights = peer.keys(theirs.state_dict())
        return attnzoo.from_upstream(entry.name, weights, **config), "equal"
    except (ValueError, KeyError):
        return attnzoo.build(entry.name, **config), "not comparable"


def agreement(sides: Pair, blocks: Pair, inputs: Inputs) -> str:
    """`equal` if outputs and input gradients agree to half of the dtype's digits, in eval mode.

    Else their difference, relative to the root mean square of theirs.
    """
    ours, theirs = (
        list(_results(side, block.eval(), inputs))
        for side, block in zip(sides, blocks, strict=True)
    )
    if [a.shape for a in ours] != [b.shape for b in theirs]:
        return "differs in shape"
    found, wanted = ({str(i): t for i, t in enumerate(side)} for side in (ours, theirs))
    error = max(relative_errors(found, wanted, size=root_mean_square).values())
    equal = error <= half_the_digits(ours[0].dtype)
    return "equal" if equal else f"differs by {error:.1e}"


def _results(side: Call, block: nn.Module, inputs: Inputs) -> Iterator[Tensor]:
    outputs = [t for t in tensors(side(inputs)) if t.is_floating_point()]
    wanted = [t for t in tensors(inputs) if t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    seeds = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    yield from (t.detach() for t in outputs)
    grads = torch.autograd.grad(outputs, wanted, seeds, allow_unused=True)
    yield from (torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True))


def _forwards(sides: Pair, blocks: Pair, inputs: Inputs) -> Iterator[Callable[[], Any]]:
    for side, block in zip(sides, blocks, strict=True):
        block.eval()

        def step(side: Call = side) -> None:
            with torch.inference_mode():
                side(inputs)

        yield step


def _trainings(sides: Pair, blocks: Pair, inputs: Inputs) -> Iterator[Callable[[], Any]]:
    for side, block in zip(sides, blocks, strict=True):
        wanted = [t for t in (*tensors(inputs), *block.parameters()) if t.requires_grad]
        block.train()
        grads = [torch.randn_like(t) for t in tensors(side(inputs)) if t.requires_grad]

        def step(
            side: Call = side, wanted: list[Tensor] = wanted, grads: list[Tensor] = grads
        ) -> None:
            outputs = [t for t in tensors(side(inputs)) if t.requires_grad]
            torch.autograd.grad(outputs, wanted, grads, allow_unused=True)

        yield step


def compared(ours: Callable[[], Any], theirs: Callable[[], Any], device: str) -> dict[str, Any]:
    """Both minimum times of alternating samples in ms, their ratio, and the null's ratio."""
    steps = {
        "a": _settled(ours, device),
        "null": _settled(ours, device),
        "b": _settled(theirs, device),
    }
    calls = min(sample.calls_per_sample(step) for step in steps.values())

    def burst(step: Callable[[], Any]) -> Callable[[int], list[float]]:
        return lambda count: sample.times(sample.burst(step, calls, 0.0, count))

    timing = interleave({name: burst(step) for name, step in steps.items()}, TIE)
    return {
        "ours_ms": 1e3 * timing.a,
        "theirs_ms": 1e3 * timing.b,
        "ratio": timing.ratio,
        "null": timing.drift,
        "tie": timing.verdict(TIE) == "same",
        "samples": timing.samples,
    }


def _settled(step: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The step after warm-up; on CUDA it waits for the device."""
    for _ in range(3):
        step()
    if torch.device(device).type != "cuda":
        return step

    def both() -> None:
        step()
        torch.cuda.synchronize(device)

    return both


def markdown(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """The table, two lines per peer, and the errors."""
    good = [row for row in rows if "error" not in row]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|---|---|---:|---:|---:|"]
    lines += [
        f"| {row['block']} | {row['peer']} ({row['version']}) | {_shapes(row)} | {row['outputs']} "
        f"| {title} | {row[key]['ours_ms']:.3g} | {row[key]['theirs_ms']:.3g} "
        f"| {_ratio(row[key])} |"
        for row in good
        for key, title in (("forward", "forward"), ("training", "fwd+bwd"))
    ]
    lines += [f"\n{row['block']}: {row['peer']}: {row['error']}" for row in rows if "error" in row]
    return f"{_heading(options)}\n\n" + "\n".join(lines) + "\n"


def _heading(options: argparse.Namespace) -> str:
    return (
        f"{options.device}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"attnzoo {attnzoo.__version__}. Outputs: `equal` where outputs and input gradients agree "
        "with the same weights; a peer that differs is fast or slow at other arithmetic; `not "
        "comparable` where its weights do not fit. Samples of both sides alternate; times are the "
        "least of each, null is that of a second run of ours over ours, `tie` where the ratio is "
        "within 3 % or within the null."
    )


def _line(row: dict[str, Any]) -> str:
    said = row.get("error") or f"{row['outputs']}; forward {_ratio(row['forward'])}"
    return f"{row['block']}: {row['peer']}: {said}"


def _ratio(timed: dict[str, Any]) -> str:
    return f"{timed['ratio']:.2f} (null {timed['null']:.2f}){' tie' * timed['tie']}"


def _shapes(row: dict[str, Any]) -> str:
    return " + ".join("x".join(map(str, shape)) for shape in row["shape"].values())


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
    parser.add_argument("--out", type=Path, metavar="DIR", help="write peers.json and peers.md")
    parser.add_argument("--device", default="cpu", help="torch device (%(default)s)")
    parser.add_argument("--c", type=int, help="channels; default: each block's example")
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
