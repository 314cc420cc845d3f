"""The command `attnzoo compare`."""

import argparse
from pathlib import Path

from .common import needs_extra

COMPARE = """\
examples:
  attnzoo compare before after                    two folders that --out named
  attnzoo compare before/bench.json after/bench.json --tolerance 0.05

exit status: 0 unchanged or better; 1 a regression, or a block that has lost its time; 2 misuse
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
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
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what moved; returns the exit status."""
    needs_extra("compare", "jsonschema")
    from ..bench import compare, results

    changes = compare.compare(
        results.load(options.old),
        results.load(options.new),
        tolerance=options.tolerance,
        allow_different=options.allow_different,
    )
    for line in compare.told(changes, options.tolerance):
        print(line)
    return 1 if any(change.regression for change in changes) else 0
