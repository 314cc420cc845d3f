"""The command `attnzoo list`."""

import argparse
from typing import get_args

from .. import registry
from .common import columns


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    command = commands.add_parser("list", help="list all blocks, or those that match")
    command.add_argument("text", nargs="?", help="text to find in name, title, paper and code")
    command.add_argument("--layout", choices=get_args(registry.Layout), help="layout of the input")
    command.add_argument("--family", choices=get_args(registry.Family), help="kind of block")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the blocks; returns the exit status."""
    found = registry.names(layout=options.layout, family=options.family, text=options.text)
    rows = [(e.name, ", ".join(e.layouts), e.title) for e in map(registry.find, found)]
    for line in columns([("name", "layout", "what"), *rows], width=80):
        print(line)
    print(f"{len(found)} block{'s' * (len(found) != 1)}; attnzoo show NAME prints details")
    return 0
