"""Which rows make a sweep: one quantity varies, everything else is the same."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .columns import CONDITIONS, VERSIONS, PlainRow


class Line(NamedTuple):
    """One block's rows in the order of the swept values."""

    key: str  # a keyword of the block, or batch, T, size (of an image's side)
    values: tuple[float, ...]
    rows: tuple[PlainRow, ...]


def lines(rows: Iterable[PlainRow]) -> list[Line]:
    """All sweeps of at least two values that are in the rows."""
    found: dict[tuple[str, str], dict[float, PlainRow]] = {}
    for row in rows:
        sizes = quantities(row)
        for key, value in sizes.items():
            rest = {name: other for name, other in sizes.items() if name != key}
            found.setdefault((key, _rest(row, rest)), {})[value] = row
    return [
        Line(key, tuple(sorted(same)), tuple(same[value] for value in sorted(same)))
        for (key, _), same in found.items()
        if len(same) > 1
    ]


def quantities(row: PlainRow) -> dict[str, float]:
    """The numbers that a sweep may vary: the block's own, and the sizes of its first input."""
    numbers = {
        key: float(value)
        for key, value in row["config"].items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    }
    first = next(iter(row["shape"].values()))
    sides = first[0] if isinstance(first[0], list) else first
    numbers["batch"] = float(sides[0])
    if row["layout"] in ("sequence", "image_series"):
        numbers["T"] = float(sides[-2] if row["layout"] == "sequence" else sides[1])
    if row["layout"] != "sequence":
        numbers["size"] = math.sqrt(sides[-1] * sides[-2])
    return numbers


def growth(values: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent e of cost ~ value ** e that fits best, by least squares in logarithms."""
    across, up = [math.log(v) for v in values], [math.log(c) for c in costs]
    middle, level = sum(across) / len(across), sum(up) / len(up)
    rise = sum((x - middle) * (y - level) for x, y in zip(across, up, strict=True))
    return rise / sum((x - middle) ** 2 for x in across)


def _rest(row: PlainRow, numbers: dict[str, float]) -> str:
    """Everything but one number, as text."""
    words: dict[str, Any] = {
        key: value for key, value in row["config"].items() if key not in quantities(row)
    }
    apart = {key: row.get(key) for key in ("block", "layout", *CONDITIONS, *VERSIONS)}
    return json.dumps([apart, words, numbers], sort_keys=True)
