"""The command `attnzoo bench`."""

import argparse
from pathlib import Path

from .common import needs_extra

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


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
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
    command.add_argument(
        "--threads",
        type=_count,
        default=1,
        metavar="N",
        help="threads of the CPU (%(default)s: a second one waits for its core on a busy machine)",
    )
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
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, keep and print rows; returns the exit status."""
    needs_extra("bench", "rich", "filelock", "jsonschema", "matplotlib")
    from ..bench import drive

    return drive.bench(options)


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
