"""How costs grow along a sweep, and which rows make one."""

import json
import math
from collections.abc import Container, Iterable, Sequence
from statistics import linear_regression
from typing import NamedTuple

from ..columns import PlainRow
from ..row import Result, Row
from .rows import CONDITIONS, VERSIONS

COSTS = {
    "forward": "latency_forward_ms",
    "fwd+bwd": "latency_training_ms",
    "MACs": "macs",
    "saved bytes": "memory_saved_bytes",
}
SCATTER = 0.15  # of the points around the line, in logarithms, past which an exponent is doubtful


class Line(NamedTuple):
    """One block's rows in the order of the swept values."""

    key: str  # a keyword of the block, or batch, T, size (of an image's side)
    values: tuple[float, ...]
    rows: tuple[PlainRow, ...]


class Growth(NamedTuple):
    """cost ~ value ** exponent."""

    exponent: float
    scatter: float  # root mean square distance of the points from the line, in logarithms


def lines(rows: Iterable[PlainRow]) -> list[Line]:
    """All sweeps of at least two values that are in the rows: one number differs, nothing else."""
    found: dict[str, dict[float, PlainRow]] = {}
    for row in rows:
        sizes = quantities(row)
        words = {k: v for k, v in row["config"].items() if k not in sizes}
        same = [row["block"], words, *(row[key] for key in (*CONDITIONS, *VERSIONS))]
        for key, value in sizes.items():
            rest = {name: other for name, other in sizes.items() if name != key}
            found.setdefault(json.dumps([key, rest, *same], sort_keys=True), {})[value] = row
    return [
        Line(json.loads(task)[0], tuple(sorted(by)), tuple(by[value] for value in sorted(by)))
        for task, by in found.items()
        if len(by) > 1
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


def growth(values: Sequence[float], costs: Sequence[float]) -> Growth:
    """The exponent that fits best, by least squares in logarithms, and how well it fits."""
    across, up = [math.log(v) for v in values], [math.log(c) for c in costs]
    slope, start = linear_regression(across, up)
    off = [y - start - slope * x for x, y in zip(across, up, strict=True)]
    return Growth(slope, math.hypot(*off) / math.sqrt(len(off)))


def growth_lines(rows: Iterable[Result], swept: Container[str]) -> list[str]:
    """The exponents of the keys that were swept, as lines of text."""
    found = lines(row.to_json() for row in rows if isinstance(row, Row))
    found = [line for line in found if line.key in swept]
    text = ["cost ~ value ** exponent, by least squares of the logarithms:"] if found else []
    for line in found:
        unit = f"{line.key} (per side; per pixel half)" if line.key == "size" else line.key
        costs = ", ".join(f"{name} {_exponent(line, key)}" for name, key in COSTS.items())
        text.append(f"  {line.rows[0]['block']} per {unit}, {len(line.rows)} points: {costs}")
    return text


def _exponent(line: Line, key: str) -> str:
    costs = [row[key] for row in line.rows]
    if min(costs) <= 0:
        return "none"  # a cost that is zero somewhere does not grow by a power
    found = growth(line.values, costs)
    noisy = not all(row.get(key.replace("_ms", "_settled"), True) for row in line.rows)
    return f"{found.exponent:.2f}{' (doubtful)' * (noisy or found.scatter > SCATTER)}"
