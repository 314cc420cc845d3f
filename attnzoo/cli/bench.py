"""The command `attnzoo bench`."""

import argparse
import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from .. import registry
from ..validation import check
from .common import needs_extra
from .compare import progress

if TYPE_CHECKING:
    from ..bench.job import Job
    from ..bench.row import Result
    from ..bench.runner import Ranks

EXAMPLES = """\
examples:
  attnzoo bench                                   all blocks, at sizes common to their layout
  attnzoo bench se cbam --c 256 --size 32 --out results
  attnzoo bench --layout image --baseline se      with each time over that of se
  attnzoo bench --out results --resume            go on with a run that was stopped
  attnzoo bench se coordatt --sweep size=14,28,56 a row for each size
  attnzoo bench --import my_blocks my_block       a block that your module registers
  attnzoo bench --dtype float32,bfloat16 --mode eager,compiled
  torchrun --nproc-per-node 2 -m attnzoo bench --out results

exit status: 0; 1 where a block has no time; 2 for misuse; 130 interrupted
"""
SIZES = ("size", "steps", "batch")  # of the grid's keys, besides dtype and mode: for `Settings`


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "bench",
        help="check and measure blocks on this machine",
        description="Check each block against its reference vectors and its reference form in "
        "float64, then measure it. Without names, all blocks; without sizes, those common to a "
        "layout, or the block's own where it refuses them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_option = command.add_argument
    add_option("names", nargs="*", metavar="NAME", help="blocks to measure; default: all")
    add_option("--layout", choices=get_args(registry.Layout), help="blocks of this layout")
    add_option("--family", choices=get_args(registry.Family), help="blocks of this family")
    add_option(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module that registers blocks; several times for several",
    )
    add_option("--device", default="cpu", help="torch device: cpu, cuda, cuda:1, ...")
    add_option(
        "--dtype",
        type=_words,
        default=["float32"],
        help="of float64, float32, bfloat16, float16, one or several with commas",
    )
    add_option(
        "--mode",
        type=_words,
        default=["eager"],
        help="of eager, compiled, cudagraph, one or several with commas",
    )
    add_option("--autocast", action="store_true", help="float32 parameters, autocast to the dtype")
    add_option("--channels-last", action="store_true", help="images in channels_last")
    add_option("--threads", type=_count, default=1, metavar="N", help="of the CPU (%(default)s)")
    add_option("--cold", action="store_true", help="on CUDA, times with a cold L2 too")
    add_option("--c", type=_count, help="channels, of every block that takes c")
    add_option("--size", type=_size, help="image side N, or HxW; length of a sequence")
    add_option("--steps", type=_count, help="time steps of sequences and image series")
    add_option("--batch", type=_count, help="batch size")
    add_option(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V1,V2,...",
        help="a row for each value of c, size, T (time steps), batch or any keyword of a block; "
        "several sweeps: every combination",
    )
    add_option("--time", type=float, default=0.1, help="seconds of samples a pass (%(default)s)")
    add_option(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="stop a row that takes longer; rows run in another process then",
    )
    add_option("--isolate", action="store_true", help="each row in a process of its own")
    add_option("--columns", type=_words, metavar="A,B,...", help="columns of the printed table")
    add_option("--baseline", metavar="NAME", help="a column of times over this block's")
    add_option(
        "--out",
        type=Path,
        metavar="DIR",
        help="keep every row in DIR/bench.jsonl as it comes, and write tables, a page and plots "
        "there; an earlier run's rows move to DIR/previous",
    )
    add_option(
        "--resume",
        action="store_true",
        help="go on with the run in --out: measured rows stay, failed ones are tried again",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, keep and print rows; returns the exit status."""
    if options.resume and options.out is None:
        raise ValueError("--resume goes on with the run in --out DIR; there is no --out")
    if options.timeout is not None and not options.timeout > 0:
        raise ValueError(f"--timeout {options.timeout} must be a positive number of seconds")
    if options.out is not None:
        needs_extra("bench --out", "tabulate", "matplotlib")
    from ..bench import run as one
    from ..bench import runner

    for name in options.imports:
        _import(name)
    perform = one.perform
    if options.isolate or options.timeout is not None:
        perform = partial(
            runner.perform_apart, timeout=options.timeout, imports=tuple(options.imports)
        )
    with runner.ranks() as here:
        if here.rank == 0 and options.out is not None:
            _make(options.out)
        if options.out is None and here.size > 1:
            raise ValueError("with torchrun, name --out DIR: the ranks join their rows there")
        jobs = _jobs(options, here)
        tell = progress if here.rank == 0 and sys.stderr.isatty() else lambda text: None
        rows, stopped = runner.run_all(jobs, options.out, here, perform, options.resume, tell)
        if here.rank:
            return 1 if stopped else 0
        return _report(options, rows, stopped)


def _jobs(options: argparse.Namespace, here: "Ranks") -> list["Job"]:
    """Every row that is asked for, in order: each block at each point of the grid of options."""
    from ..bench import report
    from ..bench.job import Settings, example_job

    report.require_titles(options.columns or ())
    known = registry.names(layout=options.layout, family=options.family)
    entries = [registry.find(name) for name in options.names or known]
    if options.baseline is not None:
        registry.find(options.baseline)
    if not entries:
        raise ValueError(f"no block has layout {options.layout} and family {options.family}")
    grid = {key: [value] for key in ("c", *SIZES) if (value := getattr(options, key)) is not None}
    keywords = {key for entry in entries for key in entry.signature.parameters}
    for text in options.sweep:
        key, values = _sweep(text)
        check.choice("--sweep", key, ["T", *SIZES, *sorted(keywords)])
        key = "steps" if key == "T" else key
        if key in grid:
            raise ValueError(f"--sweep {text}: {key} has its values from another option already")
        grid[key] = values
    grid |= {"dtype": options.dtype, "mode": options.mode}
    always = {
        "device": here.device(options.device),
        "min_time": options.time,
        **{key: getattr(options, key) for key in ("autocast", "channels_last", "threads", "cold")},
    }
    jobs = []
    for entry, *values in itertools.product(entries, *grid.values()):
        point = dict(zip(grid, values, strict=True))
        chosen = {key: point.pop(key) for key in (*SIZES, "dtype", "mode") if key in point}
        jobs.append(example_job(entry.name, point, Settings(**always, **chosen)))
    return jobs


def _sweep(text: str) -> tuple[str, list[Any]]:
    """`c=32,64` as a key and its values, which are JSON, HxW, or text where they are neither."""
    key, equals, rest = text.partition("=")
    if not (key and equals and rest):
        raise ValueError(f"--sweep {text!r} must be KEY=V1,V2,..., such as c=32,64,128")
    try:
        values = json.loads(f"[{rest}]")
    except ValueError:
        values = [_value(key, word) for word in rest.split(",")]
    if any(value in values[:i] for i, value in enumerate(values)) or "" in values:
        raise ValueError(f"--sweep {text!r}: each value must be there once")
    return key, values


def _value(key: str, word: str) -> Any:
    try:
        return _size(word) if key == "size" else json.loads(word)
    except ValueError:
        return word


def _report(options: argparse.Namespace, rows: Sequence["Result"], stopped: str) -> int:
    """Print the table, the files and what failed; returns the exit status."""
    from ..bench import report, store
    from ..bench.row import Failure

    print(report.terminal(rows, columns=options.columns, baseline=options.baseline))
    if options.out is not None:
        command = shlex.join(["attnzoo", *sys.argv[1:]])
        written = report.write(rows, options.out, command, options.baseline)
        for path in (options.out / store.NAME, *written):
            print(f"wrote {path}")
    failures = [row for row in rows if isinstance(row, Failure)]
    for failure in failures:
        print(f"attnzoo: {failure.block} has no row: {failure.error}", file=sys.stderr)
    if stopped:
        there = f"; --resume goes on: {options.out}" if options.out else ""
        print(f"attnzoo: {stopped} with {len(rows)} rows{there}", file=sys.stderr)
        return 130 if stopped == "interrupted" else 1
    return 1 if failures else 0


def _make(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} must be a folder; there is a file of that name")
    folder.mkdir(parents=True, exist_ok=True)


def _import(name: str) -> None:
    sys.path.insert(0, str(Path.cwd()))
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"--import {name}: {error}") from None
    finally:
        sys.path.remove(str(Path.cwd()))


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
