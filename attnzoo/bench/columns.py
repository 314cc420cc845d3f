"""The columns of every table: a title, what it means, and how a row's value reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PlainRow = Mapping[str, Any]  # a row as JSON has it, perhaps with its ranks
Show = Callable[[PlainRow, str, bool], str]  # a row, the key of a value in it, brief or whole

EXPLAINED = 0.3  # of a time, below which a bound does not explain it


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    means: str
    show: Show
    room: int = 0  # in a terminal: the order in which columns get room; 0 only when asked for
    key: str = ""  # of the value in a plain row, which the column sorts by

    @property
    def numeric(self) -> bool:
        """Whether its cells are numbers, which stand at the right."""
        return self.show not in (word, shapes, keywords)

    def text(self, row: PlainRow, brief: bool = False) -> str:
        """What a row's cell says, nothing where the row has no value."""
        return "" if row.get(self.key) is None else self.show(row, self.key, brief)


def column(title: str, means: str, show: Show, room: int = 0) -> Any:
    """A field of a record that has a column."""
    return field(metadata={"column": Column(title, means, show, room)})


def word(row: PlainRow, key: str, brief: bool) -> str:
    """The value as it is."""
    return str(row[key])


def number(row: PlainRow, key: str, brief: bool) -> str:
    """An int, or two digits after the point."""
    return str(row[key]) if isinstance(row[key], int) else f"{row[key]:.2f}"


def whole(row: PlainRow, key: str, brief: bool) -> str:
    """A count: every digit, or three and a unit."""
    return amount(row[key]) if brief else f"{row[key]:,}"


def size(row: PlainRow, key: str, brief: bool) -> str:
    """A number of bytes."""
    return f"{amount(row[key], ' ')}B"


def time(row: PlainRow, key: str, brief: bool) -> str:
    """Milliseconds, ~ where they were reached once only, and the percentiles."""
    name = key.removesuffix("_ms")
    least = f"{'' if row.get(f'{name}_settled', True) else '~'}{row[key]:.3g}"
    if brief or row.get(f"{name}_p20_ms") is None:
        return least
    return f"{least} ({row[f'{name}_p20_ms']:.3g} to {row[f'{name}_p80_ms']:.3g})"


def bound(row: PlainRow, key: str, brief: bool) -> str:
    """A roof and the share of the time that it explains, `none` where that is little."""
    share = f"{row[key.removesuffix('_fraction')]} {100 * row[key]:.0f} %"
    return share if row[key] >= EXPLAINED else f"none ({share})"


def quoted(row: PlainRow, key: str, brief: bool) -> str:
    """fvcore's multiply-adds, and those that it passes over."""
    missed = [f"{name} {amount(n)}" for name, n in (row.get("fvcore_misses") or {}).items()]
    return amount(row[key]) + " without " * bool(missed) + ", ".join(missed)


def keywords(row: PlainRow, key: str, brief: bool) -> str:
    """A configuration: `c=64, reduction=16`."""
    return ", ".join(f"{name}={value!r}" for name, value in row[key].items())


def shapes(row: PlainRow, key: str, brief: bool) -> str:
    """The shapes of named inputs: `2x64x14x14`, joined by plus signs, lists in brackets."""

    def sides(value: Any) -> str:
        if isinstance(value[0], list):
            return "[" + ", ".join(map(sides, value)) + "]"
        return "x".join(map(str, value))

    return " + ".join(sides(value) if value else "number" for value in row[key].values())


def amount(value: float, gap: str = "") -> str:
    """Three digits and a unit of 1000s: `806k`; `gap` stands between the two."""
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{gap}{unit}"
        value /= 1000
    return f"{value:.3g}{gap}T"
