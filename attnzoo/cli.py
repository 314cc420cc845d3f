"""The command line: `attnzoo list | show | bench | compare | timm | verify`; `--help` tells."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import get_args

from . import reference, registry
from .bench import command as command_bench

EPILOG = """\
examples:
  attnzoo list --layout image          the image blocks, a line each
  attnzoo list attention               blocks whose title or paper mentions "attention"
  attnzoo show cbam                    paper, equation, arguments, costs of one block
  attnzoo bench                        the table of all blocks on this machine
  attnzoo bench se cbam --c 256 --size 32 --out results
  attnzoo compare before after         what moved between two runs; status 1 on a regression
  attnzoo timm se 'resnet*'            networks of timm that take the block as attn_layer
  attnzoo verify                       every block against its authors' own numbers
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a failed check, 2 for misuse."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError) as error:
        print(f"attnzoo: {error}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="attnzoo",
        description="A flat catalogue of plug-and-play attention blocks.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    command = commands.add_parser("list", help="all blocks, or those that match, a line each")
    command.add_argument("text", nargs="?", help="words to look for in name, title, paper and code")
    command.add_argument("--layout", choices=get_args(registry.Layout), help="layout of the input")
    command.add_argument("--family", choices=get_args(registry.Family), help="kind of block")
    command.set_defaults(run=_list)

    command = commands.add_parser("show", help="everything known of one block")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(run=_show)

    command_bench.add(commands)

    command = commands.add_parser(
        "timm",
        help="which networks of timm take a block as their attention layer",
        description="Build timm's networks with the block, on the meta device and without weights, "
        "and list those that took it, each as soon as it is built.",
    )
    command.add_argument("name", metavar="NAME")
    command.add_argument("models", nargs="?", default="*", help="glob of timm's model names")
    command.set_defaults(run=_timm)

    command = commands.add_parser("verify", help="re-run the authors' reference vectors, offline")
    command.add_argument("names", nargs="*", metavar="NAME", help="blocks to verify; default: all")
    command.set_defaults(run=_verify)
    return parser


def _list(options: argparse.Namespace) -> int:
    found = registry.names(layout=options.layout, family=options.family, text=options.text)
    rows = [
        (r.name, ", ".join(r.layouts), r.family, r.title) for r in map(registry.describe, found)
    ]
    for line in _columns([("name", "layout", "family", "what"), *rows]):
        print(line)
    print(f"{len(found)} block{'s' * (len(found) != 1)}; attnzoo show NAME tells more")
    return 0


def _show(options: argparse.Namespace) -> int:
    record = registry.describe(options.name)
    print(f"{record.signature}\n\n{record.title}.\n")
    for label in ("paper", "code", "math", "shapes", "differs", "cost"):
        text = getattr(record, label)
        if text:
            print(f"{label.capitalize()}:", text.replace("\n", "\n    "))
    print(f"Layout: {', '.join(record.layouts)}; family: {record.family}")
    config = "".join(f", {key}={value!r}" for key, value in record.example.items())
    print(f'Example: attnzoo.build("{record.name}"{config})')
    if record.params is not None:
        print(f"    {record.params:,} parameters, {record.macs:,} multiply-adds a sample")
        if record.macs_executed != record.macs:
            print(f"    {record.macs_executed:,} multiply-adds as computed here")
    print("Supported:")
    for line in _columns([(f"    {key}", value) for key, value in record.supported.items()]):
        print(line)
    return 0


def _timm(options: argparse.Namespace) -> int:
    if find_spec("timm") is None:
        raise ValueError('attnzoo timm needs the bench extra: pip install "attnzoo[bench]"')
    from .timm_nets import takers

    models = []
    for found in takers(options.name, options.models):
        models.append(found.model)
        line = f"{found.model:<40}{found.call:<34}{found.blocks:>3} blocks"
        print(f"{line} {found.parameters:>12,} parameters", flush=True)
    many = f"{len(models)} network{'s' * (len(models) != 1)}"
    print(f"{many}; layer = attnzoo.attn_layer({options.name!r})")
    return 0


def _verify(options: argparse.Namespace) -> int:
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
    for line in _columns(lines):
        print(line)
    for verdict in failed:
        print(
            f"attnzoo: {verdict.block} {verdict.case}: {verdict.worst} is off by "
            f"{verdict.error:.1e}, over {reference.TOLERANCE:.0e}",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows as lines, every column but the last as wide as its widest cell."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *head, tail in rows:
        yield "  ".join([*(f"{c:<{w}}" for c, w in zip(head, widths, strict=True)), tail]).rstrip()
