"""Sweeps: the values to go through, and how fast each cost grows with them."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..registry import Entry
from ..validation import check
from . import scaling
from .results import Result
from .row import Row
from .run import Task
from .settings import Settings

Point = Mapping[str, Any]  # one value for each swept key
EXTENTS = ("size", "T", "batch")  # keys of the input; every other is a keyword of the block
COSTS: dict[str, Callable[[Row], float]] = {
    "forward": lambda row: row.latency_forward.median,
    "fwd+bwd": lambda row: row.latency_training.median,
    "MACs": lambda row: row.macs,
    "saved bytes": lambda row: row.memory_saved_bytes,
}


class Sweep(NamedTuple):
    """One `--sweep KEY=V1,V2,...`."""

    key: str
    values: tuple[Any, ...]


class Growth(NamedTuple):
    """How one block's costs grow with one key: cost ~ value ** exponent."""

    block: str
    unit: str  # the key; of an image's size its side
    where: str  # the other swept keys' values, settings included
    points: int
    exponents: dict[str, float | None]  # by cost; None where a cost is zero


def parse(text: str) -> Sweep:
    """`c=32,64` as a sweep; values are JSON, or text where they are not.

    Raises ValueError where there is no key or no value, or a value comes twice.
    """
    key, equals, rest = text.partition("=")
    if not (key and equals and rest):
        raise ValueError(f"--sweep {text!r} must be KEY=V1,V2,..., such as c=32,64,128")
    try:
        values = json.loads(f"[{rest}]")
    except ValueError:
        values = [_value(word) for word in rest.split(",")]
    if any(value in values[:i] for i, value in enumerate(values)) or "" in values:
        raise ValueError(f"--sweep {text!r}: each value must be there once")
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise ValueError(f"--sweep {text!r}: a number must be finite")
    if key in EXTENTS:
        values = [_extent(key, value) for value in values]
    return Sweep(key, tuple(values))


def points(sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    """Every combination of the sweeps' values, the last key running fastest; [{}] without any.

    Raises ValueError where two sweeps have one key.
    """
    keys = [sweep.key for sweep in sweeps]
    if len(set(keys)) < len(keys):
        raise ValueError(f"--sweep: each key once, not {', '.join(keys)}")
    return [
        dict(zip(keys, values, strict=True))
        for values in itertools.product(*(sweep.values for sweep in sweeps))
    ]


def known(sweeps: Iterable[Sweep], entries: Sequence[Entry]) -> None:
    """Each key is an extent or a keyword of one of the blocks; ValueError names the nearest."""
    keywords = {key for entry in entries for key in entry.signature.parameters}
    for sweep in sweeps:
        check.choice("--sweep", sweep.key, [*EXTENTS, *sorted(keywords)])


def applied(entry: Entry, settings: Settings, point: Point) -> Task:
    """A block at one point of the sweeps; keywords that it does not take pass it by."""
    config = {k: v for k, v in point.items() if k in entry.signature.parameters}
    extents = {"steps" if k == "T" else k: v for k, v in point.items() if k in EXTENTS}
    return Task(
        block=entry.name,
        config={**entry.example, **config},
        settings=replace(settings, **extents),
    )


def growth(rows: Iterable[tuple[Result, Point]]) -> list[Growth]:
    """Exponents of each block's costs for each numeric key that two rows or more differ in."""
    series: dict[tuple[str, str, str], list[tuple[float, Row]]] = {}
    for row, point in rows:
        for key, value in point.items():
            if isinstance(row, Row) and _numeric(value):
                series.setdefault((row.block, key, _where(row, point, key)), []).append(
                    (value, row)
                )
    found = []
    for (block, key, where), line in series.items():
        if len({row.identity() for _, row in line}) >= 2:
            x = [value for value, _ in line]
            costs = {name: [cost(row) for _, row in line] for name, cost in COSTS.items()}
            exponents = {  # a cost that is zero somewhere does not grow by a power
                name: scaling.growth(x, y) if min(y) > 0 else None for name, y in costs.items()
            }
            found.append(Growth(block, _unit(key, line[0][1]), where, len(line), exponents))
    return found


def _where(row: Row, point: Point, key: str) -> str:
    others = [f"{name}={value}" for name, value in point.items() if name != key]
    kind = f"{row.dtype}{' autocast' * row.autocast}{' channels_last' * row.channels_last}"
    return " ".join([*others, kind, row.mode])


def _unit(key: str, row: Row) -> str:
    if key != "size" or row.layout == "sequence":
        return key
    return "size (per side; per pixel half)"


def _numeric(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _extent(key: str, value: Any) -> Any:
    if isinstance(value, str) and key == "size":
        sides = value.split("x")
        if len(sides) == 2 and all(side.isdecimal() and int(side) > 0 for side in sides):
            return (int(sides[0]), int(sides[1]))
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
        return value
    legal = "whole numbers of at least 1" + " or HxW" * (key == "size")
    raise ValueError(f"--sweep {key}: {value!r} is not one of the {legal}")


def told(found: Sequence[Growth]) -> list[str]:
    """The exponents as lines of text."""
    if not found:
        return []
    lines = ["cost ~ value ** exponent, by least squares of the logarithms:"]
    for each in found:
        costs = ", ".join(
            f"{name} {'none' if value is None else format(value, '.2f')}"
            for name, value in each.exponents.items()
        )
        lines.append(
            f"  {each.block} per {each.unit} ({each.points} points, {each.where}): {costs}"
        )
    return lines
