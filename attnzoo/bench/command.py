"""The commands `attnzoo bench` and `attnzoo compare`: arguments, progress, exit status."""

import argparse
import contextlib
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .. import registry

if TYPE_CHECKING:
    from .distributed import Group
    from .results import Result
    from .run import Task
    from .sweep import Point

BENCH = """\
examples:
  attnzoo bench                                   all blocks at their example sizes
  attnzoo bench se cbam --c 256 --size 32 --out results
  attnzoo bench --out results --resume            go on with a run that was stopped
  attnzoo bench se eca --sweep size=14,28,56      growth exponents below the table
  attnzoo bench --dtype float32,bfloat16 --mode eager,compiled
  torchrun --nproc-per-node 2 -m attnzoo bench --out results

exit status: 0; 1 where a block has no time; 2 for misuse; 130 interrupted
"""
COMPARE = """\
examples:
  attnzoo compare before after                    two folders that --out named
  attnzoo compare before/bench.json after/bench.json --tolerance 0.05

exit status: 0 unchanged or better; 1 a regression, or a block that has lost its time; 2 misuse
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Enter both commands into the command line."""
    command = commands.add_parser(
        "bench",
        help="check and measure blocks on this machine",
        description="Check each block against its reference vectors and its plain form in float64, "
        "then measure it. Without names, all blocks; without sizes, each block's example.",
        epilog=BENCH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("names", nargs="*", metavar="NAME", help="blocks to measure; default: all")
    command.add_argument("--device", default="cpu", help="torch device: cpu, cuda, cuda:1, ...")
    command.add_argument(
        "--dtype",
        type=_words,
        default=["float32"],
        help="of float64, float32, bfloat16, float16, one or several with commas",
    )
    command.add_argument(
        "--mode",
        type=_words,
        default=["eager"],
        help="of eager, compiled, cudagraph, one or several with commas",
    )
    command.add_argument(
        "--autocast", action="store_true", help="float32 parameters under autocast to the dtype"
    )
    command.add_argument("--channels-last", action="store_true", help="images in channels_last")
    command.add_argument("--threads", type=_count, metavar="N", help="threads of the CPU")
    command.add_argument("--cold", action="store_true", help="on CUDA, times with a cold L2 too")
    command.add_argument("--c", type=_count, help="channels, of every block that takes c")
    command.add_argument("--size", type=_size, help="image side N, or HxW; length of a sequence")
    command.add_argument("--steps", type=_count, help="time steps of sequences and image series")
    command.add_argument("--batch", type=_count, help="batch size")
    command.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V1,V2,...",
        help="a row for each value of c, size, T (time steps), batch or any keyword of a block; "
        "several sweeps: every combination",
    )
    command.add_argument(
        "--time", type=float, default=0.2, help="seconds of timing per row and pass (%(default)s)"
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="keep every row in DIR/bench.json as it comes, and write tables and plots there; "
        "an earlier run's bench.json moves to DIR/previous",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out: measured rows stay, failed ones are tried again",
    )
    command.set_defaults(run=bench)

    command = commands.add_parser(
        "compare",
        help="what moved between two runs, beyond the noise",
        description="Compare two result files row by row, the machine's own drift taken out.",
        epilog=COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("old", type=Path, metavar="OLD", help="bench.json, or its folder")
    command.add_argument("new", type=Path, metavar="NEW", help="bench.json, or its folder")
    command.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="how much slower or larger is still no regression (%(default)s: a tenth)",
    )
    command.add_argument(
        "--allow-different",
        action="store_true",
        help="compare runs of different machines, versions, threads or settings too",
    )
    command.set_defaults(run=compare)


def bench(options: argparse.Namespace) -> int:
    """Measure, keep and print rows; returns the exit status."""
    for package in ("rich", "filelock", "matplotlib"):
        if find_spec(package) is None:
            raise ValueError('attnzoo bench needs the bench extra: pip install "attnzoo[bench]"')
    from . import distributed

    if options.resume and options.out is None:
        raise ValueError("--resume goes on with the run in --out DIR; there is no --out")
    with distributed.joined() as group, contextlib.ExitStack() as kept:
        folder = group.share(lambda: _folder(options.out, kept))
        return _bench(options, group, folder)


def compare(options: argparse.Namespace) -> int:
    """Print what moved; returns the exit status."""
    from . import compare, results

    changes = compare.compare(
        results.load(options.old),
        results.load(options.new),
        tolerance=options.tolerance,
        allow_different=options.allow_different,
    )
    for line in compare.told(changes, options.tolerance):
        print(line)
    return 1 if any(change.regression for change in changes) else 0


def _bench(options: argparse.Namespace, group: "Group", folder: Path) -> int:
    from rich.console import Console
    from rich.progress import track

    from . import record, results, run
    from .row import Failure

    plan = _plan(options, group)
    keys = [results.key(task) for task, _ in plan]
    rows = record.Record(keys, folder, group.rank)
    done = group.share(lambda: rows.begin(plan[0][0].known(), options.resume))
    tasks = {key: task for key, (task, _) in zip(keys, plan, strict=True) if key not in done}
    console = Console(stderr=True)
    mine = track(
        list(tasks.values())[group.rank :: group.size],
        "measuring",
        console=console,
        transient=True,
        disable=group.rank > 0 or not console.is_terminal,
    )
    stopped = ""
    try:
        for task in mine:
            rows.add(run.perform(task))
        group.wait()
    except KeyboardInterrupt:
        stopped = "interrupted"
    except RuntimeError as error:
        stopped = f"a rank has ended early ({error})"
    if group.rank:
        return 1 if stopped else 0
    found = rows.end()
    _print(options, found, list(zip(keys, (point for _, point in plan), strict=True)))
    if stopped:
        there = f"; --resume goes on: {folder}" if options.out else ""
        print(f"attnzoo: {stopped} with {len(rows.own)} rows measured{there}", file=sys.stderr)
        return 130 if stopped == "interrupted" else 1
    return 1 if any(isinstance(row, Failure) for row in found) else 0


def _plan(options: argparse.Namespace, group: "Group") -> "list[tuple[Task, Point]]":
    """Every row that is asked for, in order, with the values its sweeps have there."""
    from . import run, sweep

    entries = [registry.find(name) for name in options.names or registry.names()]
    sweeps = [sweep.parse(text) for text in options.sweep]
    sweep.known(sweeps, entries)
    asked = [
        run.Settings(
            device=group.device(options.device),
            dtype=dtype,
            mode=mode,
            autocast=options.autocast,
            channels_last=options.channels_last,
            threads=group.threads(options.threads),
            cold=options.cold,
            batch=options.batch,
            size=options.size,
            steps=options.steps,
            min_time=options.time,
        )
        for dtype in options.dtype
        for mode in options.mode
    ]
    fixed = {} if options.c is None else {"c": options.c}
    return [
        (sweep.applied(entry, settings, {**fixed, **point}), point)
        for entry in entries
        for point in sweep.points(sweeps)
        for settings in asked
    ]


def _folder(asked: Path | None, kept: contextlib.ExitStack) -> Path:
    """The folder of the run, kept to it; a temporary one where none is asked for."""
    from . import results

    if asked is None:
        return Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="attnzoo-")))
    if asked.exists() and not asked.is_dir():
        raise ValueError(f"--out {asked} must be a folder; there is a file of that name")
    asked.mkdir(parents=True, exist_ok=True)
    kept.enter_context(results.locked(asked))
    return asked


def _print(
    options: argparse.Namespace, rows: "Sequence[Result]", points: "Sequence[tuple[str, Point]]"
) -> None:
    """The table, growth exponents, the files and what failed."""
    from rich.console import Console

    from . import report, results, sweep
    from .row import Failure

    output = Console()
    table = report.terminal(rows)
    output.print(table) if output.is_terminal else Console(width=200).print(table)
    found = {results.key(row): row for row in rows}
    grown = sweep.growth((found[key], point) for key, point in points if key in found)
    for line in sweep.told(grown):
        print(line)
    if options.out is not None:
        written = report.write(rows, options.out, shlex.join(["attnzoo", *sys.argv[1:]]))
        for path in (options.out / results.NAME, *written):
            print(f"wrote {path}")
    for failure in (row for row in rows if isinstance(row, Failure)):
        print(f"attnzoo: {failure.block} has no row: {failure.error}", file=sys.stderr)


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _count(text: str) -> int:
    if not _is_count(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _size(text: str) -> int | tuple[int, int]:
    """`14` or `13x17`."""
    sides = text.split("x")
    if not 1 <= len(sides) <= 2 or not all(map(_is_count, sides)):
        raise argparse.ArgumentTypeError(f"{text!r} must be a side N or HxW, such as 14 or 13x17")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 0 < int(text) < 2**31
