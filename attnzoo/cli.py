"""The command line: `attnzoo list`, `show`, `bench`, `timm`, `verify`."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from . import reference, registry

EPILOG = """\
examples:
  attnzoo list --layout image          the image blocks, a line each
  attnzoo list attention               blocks whose title or paper mentions "attention"
  attnzoo show cbam                    paper, equation, arguments, costs of one block
  attnzoo bench                        the table of all blocks on this machine
  attnzoo bench se cbam --c 256 --size 32 --out results
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

    command = commands.add_parser(
        "bench",
        help="check and measure blocks on this machine",
        description="Check each block against its reference vectors and its plain form in float64, "
        "then measure it. Without names, all blocks; without sizes, each block's example.",
    )
    command.add_argument("names", nargs="*", metavar="NAME", help="blocks to measure; default: all")
    command.add_argument("--device", default="cpu", help="torch device: cpu, cuda, cuda:1, ...")
    command.add_argument("--dtype", default="float32", help="float64, float32, bfloat16 or float16")
    command.add_argument("--c", type=_count, help="channels, of every block that takes c")
    command.add_argument("--size", type=_size, help="image side N, or HxW; length of a sequence")
    command.add_argument("--steps", type=_count, help="time steps of sequences and image series")
    command.add_argument("--batch", type=_count, help="batch size")
    command.add_argument(
        "--time", type=float, default=0.2, help="seconds of timing per row and pass (%(default)s)"
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="write bench.json and bench.md here"
    )
    command.set_defaults(run=_bench)

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
    print("Supported:")
    for line in _columns([(f"    {key}", value) for key, value in record.supported.items()]):
        print(line)
    return 0


def _bench(options: argparse.Namespace) -> int:
    if find_spec("rich") is None:
        raise ValueError('attnzoo bench needs the bench extra: pip install "attnzoo[bench]"')
    from rich.console import Console
    from rich.progress import track

    from .bench import report, run

    wanted = [registry.find(name).name for name in options.names] or registry.names()
    settings = run.Settings(
        device=options.device,
        dtype=options.dtype,
        batch=options.batch,
        size=options.size,
        steps=options.steps,
        min_time=options.time,
    )
    if options.out is not None:
        if options.out.exists() and not options.out.is_dir():
            raise ValueError(f"--out {options.out} must be a folder; there is a file of that name")
        options.out.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    rows = list(
        track(
            run.table(wanted, settings, options.c),
            "measuring",
            total=len(wanted),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
    )
    table = report.terminal(rows)
    output = Console()
    output.print(table) if output.is_terminal else Console(width=200).print(table)
    if options.out is not None:
        command = shlex.join(["attnzoo", *sys.argv[1:]])
        for path in report.write(rows, options.out, command):
            print(f"wrote {path}")
    failed = [row for row in rows if isinstance(row, run.Failure)]
    for failure in failed:
        print(f"attnzoo: {failure.block} has no row: {failure.error}", file=sys.stderr)
    return 1 if failed else 0


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
