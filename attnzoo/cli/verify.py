"""The command `attnzoo verify`."""

import argparse
import sys

from .. import reference, registry
from .common import columns


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    command = commands.add_parser("verify", help="compare blocks with their authors' results")
    command.add_argument("names", nargs="*", metavar="NAME", help="blocks to verify; default: all")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the largest error of every block; returns the exit status."""
    wanted = [registry.find(name).name for name in options.names] or registry.names()
    lines = [("block", "cases", "largest error", "", "source")]
    failed: list[reference.Verdict] = []
    for name in wanted:
        verdicts = reference.verify(name)
        failed += [verdict for verdict in verdicts if not verdict.passed]
        if not verdicts:
            lines.append((name, "0", "", "none", "no reference vectors"))
            continue
        error = max(verdict.error for verdict in verdicts)
        outcome = "ok" if all(verdict.passed for verdict in verdicts) else "WRONG"
        sources = "; ".join(dict.fromkeys(verdict.source for verdict in verdicts))
        lines.append((name, str(len(verdicts)), f"{error:.1e}", outcome, sources))
    for line in columns(lines, width=100):
        print(line)
    for verdict in failed:
        print(
            f"attnzoo: {verdict.block} {verdict.case}: {verdict.worst} is off by "
            f"{verdict.error:.1e}, over {reference.TOLERANCE:.0e}",
            file=sys.stderr,
        )
    return 1 if failed else 0
