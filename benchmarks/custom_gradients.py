"""Measures each hand-written gradient against its reference form, by itself and in its block.

    python benchmarks/custom_gradients.py --out benchmarks/results/cpu

Every block that has a hand-written pair runs training steps at a realistic size, alternately with
its pairs and with their reference forms. Then each pair is run by itself, on the arguments with
which the block called it. A pair is worth having if its step is at least 1.25 times as fast, or
saves at most half as many bytes for the backward pass; a test checks the committed results.
"""

import argparse
import importlib
import json
import pkgutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

import attnzoo
from attnzoo import InputSize
from attnzoo.autograd import Pair, custom_gradient, reference_forms
from attnzoo.cost.counter import saved_bytes
from attnzoo.registry import find
from attnzoo.testing.inputs import call, make_inputs, tensors

MIN_SPEEDUP, MAX_SAVED = 1.25, 0.5  # a pair must reach one of the two
SAMPLES, MIN_SAMPLE = 12, 0.02  # number of samples of each side; seconds of a sample, at least
Call = tuple[Any, tuple[Any, ...]]  # a function with a hand-written gradient, and its arguments


class Workload(NamedTuple):
    """A block at the size of a network that uses it."""

    block: str
    config: dict[str, Any]
    size: InputSize


GATES, ATTENTION = InputSize(2, 1, 56, 56), InputSize(1, 1, 64, 64)
WORKLOADS = (
    *(
        Workload(name, {"c": 256}, GATES)
        for name in ("cbam", "coordatt", "triplet", "dia", "sknet")
    ),
    *(Workload(b, {"c": 512}, ATTENTION) for b in ("danet_position", "danet_channel")),
    Workload("agent", {"c": 128, "heads": 4, "agents": 49}, GATES),
    Workload("relu_linear", {"c": 128, "dim": 16}, GATES),
    Workload("swiftformer", {"c": 128, "layout": "sequence"}, InputSize(2, 3136)),
    Workload("mamba", {"c": 256}, InputSize(2, 512)),
    Workload("pyraformer", {"c": 256, "windows": (4, 4, 4), "inner": 5}, InputSize(1, 2048)),
    Workload("trend_aware", {"c": 64, "heads": 8}, InputSize(4 * 307, 12)),
    Workload("m_gtu", {"c": 32}, InputSize(8 * 307, 12)),
    Workload("dilated_inception", {"c": 32, "gated": True}, InputSize(2 * 207, 168)),
    Workload("self_self", {"c": 768}, InputSize(1, 785)),
    Workload(
        "mix_attention",
        {"c": 64, "dims": (256, 160, 64), "pools": (1, 2, 4)},
        InputSize(1, 1, 64, 64),
    ),
    Workload("jbu", {"c": 384, "guidance": 3, "dropout": 0.0}, InputSize(1, 1, 28, 28)),
    Workload("carafe", {"c": 256}, InputSize(2, 1, 28, 28)),
    Workload("sapa", {"c": 256, "guidance": 128}, InputSize(2, 1, 28, 28)),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; returns 1 if a pair reaches neither limit, or no block calls it."""
    options = _parser().parse_args(argv)
    torch.set_num_threads(1)
    rows = [row for work in WORKLOADS for row in measured(work, options.samples)]
    missing = sorted(set(joined()) - {row["pair"] for row in rows})
    print(text := markdown(rows))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "custom_gradients.json").write_text(json.dumps(rows, indent=1) + "\n")
        (options.out / "custom_gradients.md").write_text(text)
    for name in missing:
        print(f"{name}: no workload calls it", file=sys.stderr)
    return int(bool(missing) or not all(row["pays"] for row in rows if row["pair"]))


def modules() -> list[ModuleType]:
    """Every module that may define or import a function with a hand-written gradient."""
    rooms = [importlib.import_module(f"attnzoo.{room}") for room in ("autograd", "ops", "blocks")]
    return [
        importlib.import_module(f"{room.__name__}.{module.name}")
        for room in rooms
        for module in pkgutil.iter_modules(room.__path__)
    ]


def joined() -> dict[str, Callable[..., Any]]:
    """Every function with a hand-written gradient, by the name of its module and its own."""
    found: dict[int, tuple[str, Callable[..., Any]]] = {}
    for module in modules():
        for name, value in vars(module).items():
            if callable(value) and isinstance(getattr(value, "pair", None), Pair):
                file = module.__name__.rpartition(".")[2]
                found.setdefault(id(value), (file if name == file else f"{file}.{name}", value))
    return dict(found.values())


@contextmanager
def recorded() -> Iterator[dict[str, Call]]:
    """A context that records the largest call of each such function, by the function's name."""
    calls: dict[str, Call] = {}
    with ExitStack() as stack:
        for name, function in joined().items():
            recorder = _recorder(name, function, calls)
            for module in modules():
                for key, value in list(vars(module).items()):
                    if value is function:
                        stack.enter_context(mock.patch.object(module, key, recorder))
        yield calls


def _recorder(name: str, function: Callable[..., Any], calls: dict[str, Call]) -> Any:
    def record(*args: Any) -> Any:
        if name not in calls or args[0].numel() > calls[name][1][0].numel():
            calls[name] = function, tuple(map(_copy, args))
        return function(*args)

    return record


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.is_floating_point())


def measured(work: Workload, samples: int) -> Iterator[dict[str, Any]]:
    """A row of the block's whole step, with `pair` None, and one for each pair it calls."""
    torch.manual_seed(0)
    entry = find(work.block)
    block = attnzoo.build(work.block, **work.config).train()
    inputs = make_inputs(entry, work.config, work.size)
    for tensor in tensors(inputs):
        tensor.requires_grad_(tensor.is_floating_point())
    with recorded() as calls:  # the backward pass calls some, too
        outputs = [t for t in tensors(call(block, inputs)) if t.requires_grad]
        torch.autograd.backward(outputs, [torch.randn_like(t) for t in outputs])
    if not calls:
        return
    leaves = [t for t in (*tensors(inputs), *block.parameters()) if t.requires_grad]

    def whole() -> list[Tensor]:
        return list(tensors(call(block, inputs)))

    def plain() -> list[Tensor]:
        with reference_forms():
            return whole()

    about = {"block": work.block, "config": work.config, **_machine()}
    yield about | {"pair": None} | compared(whole, plain, leaves, samples)
    for name, (function, args) in calls.items():
        pair = function.pair._replace(min_numel=0)
        sides = custom_gradient(function.reference, pair), function.reference
        ours, theirs = (lambda f=f, a=args: list(tensors(f(*a))) for f in sides)
        leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        row = about | {"pair": name} | compared(ours, theirs, leaves, samples)
        yield row | {"pays": row["speedup"] >= MIN_SPEEDUP or row["saved"] <= MAX_SAVED}


def _machine() -> dict[str, Any]:
    versions = {"torch": torch.__version__, "attnzoo": attnzoo.__version__}
    return {"device": "cpu", "dtype": "float32", "threads": torch.get_num_threads(), **versions}


def compared(
    ours: Callable[[], list[Tensor]],
    theirs: Callable[[], list[Tensor]],
    leaves: list[Tensor],
    samples: int,
) -> dict[str, Any]:
    """The shortest step of both sides, sampled in the order A B B A, and their saved bytes."""
    steps = [_step(side, leaves) for side in (ours, theirs)]
    calls = [max(1, round(MIN_SAMPLE / _seconds(step, 2))) for step in steps]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(samples):
        for i in (0, 1) if turn % 2 == 0 else (1, 0):
            times[i].append(_seconds(steps[i], calls[i]))
    saved = [saved_bytes(side, leaves) for side in (ours, theirs)]
    best = [min(t) for t in times]
    return {
        "shapes": [list(t.shape) for t in leaves if t.ndim > 2][:1],
        "ms": 1e3 * best[0],
        "reference_ms": 1e3 * best[1],
        "speedup": best[1] / best[0],
        "saved_bytes": saved[0],
        "reference_saved_bytes": saved[1],
        "saved": saved[0] / max(1, saved[1]) if saved[1] else 1.0,
    }


def _step(side: Callable[[], list[Tensor]], leaves: list[Tensor]) -> Callable[[], None]:
    grads = [torch.randn_like(t) for t in side() if t.requires_grad]

    def step() -> None:
        outputs = [t for t in side() if t.requires_grad]
        torch.autograd.grad(outputs, leaves, grads, allow_unused=True)

    return step


def _seconds(step: Callable[[], None], calls: int) -> float:
    """Processor time of one call, which other processes affect less than wall time."""
    start = time.process_time()
    for _ in range(calls):
        step()
    return (time.process_time() - start) / calls


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table: a line for each block's whole step and for each of its pairs."""
    machine = ", ".join(f"{key} {value}" for key, value in _machine().items())
    lines = [
        "# Hand-written gradients against their reference forms\n",
        f"Training steps; {machine}. Shortest of interleaved samples, in processor time. A pair",
        f"stays in the package where it is at least {MIN_SPEEDUP} times as fast or keeps at most",
        f"{MAX_SAVED} of the bytes. Written by `python benchmarks/custom_gradients.py`.\n",
        "| block | pair | first input | ms | reference ms | times as fast | bytes kept | of |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['block']} | {row['pair'] or 'all, in the block'} "
        f"| {'x'.join(map(str, row['shapes'][0]))} | {row['ms']:.3g} | {row['reference_ms']:.3g} "
        f"| {row['speedup']:.2f} | {row['saved_bytes']:,} | {row['reference_saved_bytes']:,} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write custom_gradients.json, .md")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each side (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
