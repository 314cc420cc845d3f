"""Shared by several commands: aligned columns, and the check for optional packages."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec


def columns(rows: Sequence[tuple[str, ...]], width: int | None = None) -> Iterator[str]:
    """Rows as lines of aligned columns; with `width`, the last column is cut to fit."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *head, tail in rows:
        line = "  ".join([*(f"{c:<{w}}" for c, w in zip(head, widths, strict=True)), tail]).rstrip()
        yield line if width is None or len(line) <= width else f"{line[: width - 3]}..."


def needs_extra(command: str, *packages: str) -> None:
    """Raise `ValueError` if a package that the command needs is not installed."""
    if any(find_spec(package) is None for package in packages):
        raise ValueError(f'attnzoo {command} needs the bench extra: pip install "attnzoo[bench]"')
