"""The command `attnzoo show`."""

import argparse

from .. import registry
from .common import columns


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    command = commands.add_parser("show", help="everything known of one block")
    command.add_argument("name", metavar="NAME")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the description; returns the exit status."""
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
    for line in columns([(f"    {key}", value) for key, value in record.supported.items()]):
        print(line)
    return 0
