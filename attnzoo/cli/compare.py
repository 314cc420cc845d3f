"""The command `attnzoo compare`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .common import columns

if TYPE_CHECKING:
    from ..bench.compare.interleave import Change
    from ..bench.compare.versions import Code

EXAMPLES = """\
A and B are each one of
  a checkout            a folder with attnzoo/ in it
  a git revision        of the repository around the working directory: main, HEAD~3, v0.1.0
  an environment        a folder with bin/python, or a Python: what is installed there
  a result file         bench.jsonl, or the folder of `attnzoo bench --out`

examples:
  attnzoo compare main .                          what this checkout changes, measured side by side
  attnzoo compare v0.1.0 main se cbam             two blocks of two revisions
  attnzoo compare before after                    two result folders: counts and memory

exit status: 0 unchanged or better; 1 a regression, or a block that fails in B alone; 2 misuse
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "compare",
        help="what moved between two versions, measured side by side",
        description="Load both versions, sample each block's passes in turn with a second copy of "
        "A beside them, and say what moved past the tolerance and past what that copy moved. Of "
        "two result files: counts exactly, memory past the tolerance, times only past 25 %%.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("a", metavar="A", help="the version to compare with")
    command.add_argument("b", metavar="B", help="the version in question")
    command.add_argument("names", nargs="*", metavar="NAME", help="blocks; default: all")
    command.add_argument(
        "--tolerance",
        type=float,
        metavar="SHARE",
        default=0.1,
        help="how much slower, or larger in memory, is a regression (%(default)s); times side by "
        "side are known to within 3 %%, so that a tenth is told from a ratio of 1.07 on",
    )
    command.add_argument("--device", default="cpu", help="torch device: cpu, cuda, ...")
    command.add_argument("--dtype", default="float32", help="float32, bfloat16, ...")
    command.add_argument("--threads", type=int, default=1, metavar="N", help="of the CPU")
    command.add_argument(
        "--allow-different",
        action="store_true",
        help="compare result files of different machines, versions, threads or settings too",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what moved; returns the exit status."""
    from ..bench.compare.versions import Rows, opened

    tolerance = options.tolerance
    if not 0 <= tolerance < 10:
        raise ValueError(f"--tolerance {tolerance} must be from 0 to 10, such as 0.1")
    with opened(options.a) as a, opened(options.b) as b:
        if isinstance(a, Rows) and isinstance(b, Rows):
            return _files(a.path, b.path, options, tolerance)
        if isinstance(a, Rows) or isinstance(b, Rows):
            raise ValueError("A and B must both be result files, or both be versions that can run")
        return _versions(a, b, options, tolerance)


def _versions(a: "Code", b: "Code", options: argparse.Namespace, tolerance: float) -> int:
    from ..bench.compare import versions
    from ..bench.job import Job, Settings
    from ..registry import find, names

    settings = Settings(device=options.device, dtype=options.dtype, threads=options.threads)
    entries = [find(name) for name in options.names or names()]
    jobs = [
        Job(block=e.name, config=e.example, at=e.input_size, settings=settings) for e in entries
    ]
    tell = progress if sys.stderr.isatty() else lambda text: None
    changes = list(versions.measure(jobs, a, b, tolerance, tell))
    tell("")
    return _printed(
        changes,
        f"A: {a.name}; B: {b.name}; least times; null: a second copy of A over A. A time has moved "
        f"past {tolerance:.0%}, which is told to within 3%, and past the null",
    )


def _files(a: Path, b: Path, options: argparse.Namespace, tolerance: float) -> int:
    from ..bench import store
    from ..bench.compare import files

    rows = [
        [row for row in store.load(side) if not options.names or row.block in options.names]
        for side in (a, b)
    ]
    changes = files.compare(*rows, tolerance=tolerance, allow_different=options.allow_different)
    return _printed(
        [change for change in changes if change.verdict != "same"],
        f"{len({change.row for change in changes})} rows compared: counts exactly, memory past "
        f"{tolerance:.0%}, times only past {max(tolerance, files.TIMES_PAST):.0%}: compare two "
        "checkouts or revisions to measure smaller changes",
    )


def _printed(changes: Sequence["Change"], meaning: str) -> int:
    """Print a table and what it means; returns the exit status."""
    lines = [("row", "quantity", "A", "B", "B / A", "null", "verdict")]
    for one in changes:
        ratio, null = ("" if v is None else f"{v:.3f}" for v in (one.ratio, one.null))
        mark = f"{'REGRESSION ' * one.regression}{one.verdict} {one.error}".strip()
        lines.append((one.row, one.quantity, _number(one.a), _number(one.b), ratio, null, mark))
    for line in columns(lines) if changes else ["nothing moved"]:
        print(line)
    worse = sum(change.regression for change in changes)
    print(f"{worse} regression{'s' * (worse != 1)}. {meaning}")
    return 1 if worse else 0


def progress(text: str) -> None:
    """What is being done, on one line of the terminal that the next one replaces."""
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
