"""How costs grow along a sweep, and which rows make one."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..row import Result, Row
from .columns import CONDITIONS, VERSIONS, PlainRow

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


def growth(values: Sequence[float], costs: Sequence[float]) -> Growth:
    """The exponent that fits best, by least squares in logarithms, and how well it fits."""
    across, up = [math.log(v) for v in values], [math.log(c) for c in costs]
    middle, level = sum(across) / len(across), sum(up) / len(up)
    rise = sum((x - middle) * (y - level) for x, y in zip(across, up, strict=True))
    slope = rise / sum((x - middle) ** 2 for x in across)
    off = [y - level - slope * (x - middle) for x, y in zip(across, up, strict=True)]
    return Growth(slope, math.sqrt(sum(d * d for d in off) / len(off)))


def growth_lines(rows: Sequence[tuple[Result, Mapping[str, Any]]]) -> list[str]:
    """The exponents of what was swept, as lines of text."""
    swept = {key for _, point in rows for key in point}
    plain = [row.to_json() for row, _ in rows if isinstance(row, Row)]
    found = [line for line in lines(plain) if line.key in swept]
    if not found:
        return []
    text = ["cost ~ value ** exponent, by least squares of the logarithms:"]
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
    doubtful = found.scatter > SCATTER or noisy
    return f"{found.exponent:.2f}{' (doubtful)' * doubtful}"


def _rest(row: PlainRow, numbers: dict[str, float]) -> str:
    """Everything but one number, as text."""
    own = quantities(row)
    words = {key: value for key, value in row["config"].items() if key not in own}
    apart = {key: row.get(key) for key in ("block", "layout", *CONDITIONS, *VERSIONS)}
    return json.dumps([apart, words, numbers], sort_keys=True)
