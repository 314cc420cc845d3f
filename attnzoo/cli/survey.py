"""The command `attnzoo survey`."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

EPILOG = """\
MODEL is one of
  timm:NAME, torchvision:NAME     a network of these packages, with random weights
  hf:CONFIG.json                  a configuration of transformers, read from a file
  package.module:FUNCTION         a function or class of yours, called without arguments

examples:
  attnzoo survey timm:resnet18 auto --input 2x3x64x64
  attnzoo survey timm:resnet18 'layer[1-4].*.bn2' --input 2x3x224x224 --names se cbam eca
  attnzoo survey hf:config.json auto --input 1x3x128x128 --budget latency=5%,parameters=1M
  attnzoo survey my.package:net 'encoder.*' --input input_ids=2x16:1000 --out results
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "survey",
        help="what each block would cost in a network of yours",
        description="Insert every block that fits into a copy of the network, one after the "
        "other, and measure what it adds. Ctrl-C prints what was measured so far.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("model", metavar="MODEL", help="the network; see below")
    command.add_argument(
        "where",
        metavar="WHERE",
        help="paths of modules, with wildcards; or auto, which proposes them, or one of its rules: "
        "auto:residual, auto:attention, auto:temporal, auto:branch, auto:stage",
    )
    command.add_argument(
        "--input",
        required=True,
        metavar="SHAPE",
        help="2x3x64x64, several with commas; NAME=2x16:1000 for integers below 1000",
    )
    command.add_argument("--names", nargs="+", metavar="NAME", help="blocks; default: all")
    command.add_argument("--how", default="after", help="after, before or instead (after)")
    command.add_argument("--no-train", action="store_true", help="measure inference alone")
    command.add_argument("--compiled", action="store_true", help="measure torch.compile, too")
    command.add_argument("--device", help="torch device: cpu, cuda, ...")
    command.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of the CPU (%(default)s)"
    )
    command.add_argument(
        "--seconds", type=float, default=0.5, help="of samples for each pass (%(default)s)"
    )
    command.add_argument("--budget", metavar="LIMITS", help="such as latency=5%%,parameters=1M")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="write survey.json, .csv, .md and .svg"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the table; returns 0, 1 if no block fits, or 130 after Ctrl-C."""
    from ..candidates import models, survey

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # for package.module:FUNCTION
    found = survey(
        models.load(options.model),
        options.where,
        example_input=models.example(options.input),
        names=options.names,
        how=options.how,
        train=not options.no_train,
        compiled=options.compiled,
        device=options.device,
        threads=options.threads,
        seconds=options.seconds,
        budget=options.budget,
        progress=_progress() if sys.stderr.isatty() else None,
    )
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    print(found)
    if options.out is not None:
        found.save(options.out)
    return 130 if found.pending else int(not found.rows)


def _progress() -> Callable[[int, int, str], None]:
    """A bar on the terminal, with the time left at the pace so far."""
    start = time.monotonic()

    def show(done: int, count: int, name: str) -> None:
        filled = 20 * done // max(1, count)
        left = (time.monotonic() - start) / done * (count - done) if done else 0
        eta = f", {left:.0f} s left" if done else ""
        bar = f"[{'#' * filled}{'.' * (20 - filled)}] {done} of {count}, {name}{eta}"
        print(f"\r\033[K{bar}", end="", file=sys.stderr, flush=True)

    return show
