"""The command `attnzoo show`."""

import argparse

from .. import registry
from .common import columns


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    command = commands.add_parser("show", help="describe one block")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the description; returns the exit status."""
    record = registry.describe(options.name)
    print(f"{record.signature}\n\n{record.title}.\n")
    for label in ("when", "paper", "code", "math", "shapes", "differs", "cost"):
        text = getattr(record, label)
        if text:
            print(f"{label.capitalize()}:", text.replace("\n", "\n    "))
    if record.ranges:
        print("Arguments:")
        for line in columns([(f"    {key}", text) for key, text in record.ranges.items()]):
            print(line)
    print(f"Layout: {', '.join(record.layouts)}; family: {record.family}")
    config = "".join(f", {key}={value!r}" for key, value in record.example.items())
    print(f'Example: attnzoo.build("{record.name}"{config})')
    print(f"    {record.params:,} parameters{_macs(record)}")
    print("Supported:")
    for line in columns([(f"    {key}", value) for key, value in record.supported.items()]):
        print(line)
    return 0


def _macs(record: registry.Description) -> str:
    stated, executed = record.macs, record.macs_executed
    if stated is None:
        return "" if executed is None else f", {executed:,} multiply-adds per sample"
    differs = executed is not None and executed != stated
    here = f"\n    {executed:,} multiply-adds as computed here" if differs else ""
    return f", {stated:,} multiply-adds per sample{here}"
