"""The command line, one file per command; `attnzoo COMMAND --help` prints its arguments."""

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from . import bench, check, compare, list, show, survey, timm, verify

EPILOG = """\
examples:
  attnzoo list --layout image          the image blocks, one per line
  attnzoo list attention               blocks whose title or paper mentions "attention"
  attnzoo show cbam                    paper, equation, arguments and costs of one block
  attnzoo bench                        the table of all blocks on this machine
  attnzoo bench se cbam --c 256 --size 32 --out results
  attnzoo compare main .               how this checkout's times differ; status 1 on a regression
  attnzoo timm se 'resnet*'            networks of timm that take the block as attn_layer
  attnzoo verify                       compare every block with results of its authors' code
  attnzoo check my_block.py            test your own module like the package's blocks
  attnzoo survey timm:resnet18 auto --input 2x3x64x64    each block's cost in a network
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for a failed check, 2 for an error."""
    parser = _parser()
    options = parser.parse_args(argv)
    if not hasattr(options, "run"):
        parser.print_help()
        return 2
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
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
    parser.add_argument("--version", action="version", version=f"attnzoo {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (list, show, bench, compare, timm, verify, check, survey):
        command.add(commands)
    return parser
