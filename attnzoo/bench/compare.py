"""What moved between two runs, beyond the noise of the machine that both ran on."""

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from .match import SETTINGS, Pair, labels, pairs
from .noise import TIMES, Noise, moved, noise, shift, together
from .results import Result
from .row import Row

MACHINE = ("device", "device_name", "threads", "torch", "python")  # alike, or nothing is compared
ALL = "all rows"
MEMORY = ("memory_saved_bytes", "memory_peak_bytes")
EXACT = ("params", "macs", "macs_executed", "elementwise", "bytes_forward", "bytes_training")


Verdict = Literal[
    "same", "slower", "faster", "more", "less", "fails", "fails still", "works", "gone", "added"
]


class Change(NamedTuple):
    """One quantity of one row in both runs."""

    row: str
    quantity: str
    old: float | None  # None where that side has none
    new: float | None
    verdict: Verdict
    ratio: float | None = None  # new over old, the machine's own drift taken out
    low: float | None = None  # the ratio's interval
    high: float | None = None
    regression: bool = False


def differing(old: Sequence[Result], new: Sequence[Result]) -> dict[str, tuple[Any, Any]]:
    """Machine, versions and settings in which two runs differ, with each side's values.

    attnzoo's own version is not among them: two versions of it are what one compares.
    """
    sides = {name: (_values(old, name), _values(new, name)) for name in (*MACHINE, *SETTINGS)}
    return {
        name: (a, b)
        for name, (a, b) in sides.items()
        if a and b and (a != b if name in MACHINE else not set(a) & set(b))
    }


def compare(
    old: Sequence[Result],
    new: Sequence[Result],
    *,
    tolerance: float = 0.1,
    allow_different: bool = False,
) -> list[Change]:
    """Every quantity of every row that either run has, with its verdict.

    Args:
        old, new: the rows of two result files.
        tolerance: how much slower, or larger in memory, a row may get: 0.1 is a tenth.
        allow_different: compare runs of different machines, versions or settings too.

    Raises:
        ValueError: the runs differ in machine, versions or settings, have no row in common, or one
            of them has a row twice.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance} must be a number of at least 0, such as 0.1")
    ignored = differing(old, new)
    if ignored and not allow_different:
        words = "; ".join(f"{name}: {_join(a)} and {_join(b)}" for name, (a, b) in ignored.items())
        raise ValueError(f"OLD and NEW differ in {words}. --allow-different compares them even so")
    keys = [name for name in ("block", "config", "shape", *SETTINGS) if name not in ignored]
    found = pairs(old, new, keys)
    if all(None in pair for pair in found):
        raise ValueError("OLD and NEW have no row in common: other blocks, configs or shapes")
    among = noise(found)
    ratio, low, high, verdict = together(tolerance, among)
    whole = Change(ALL, "times / pulse", None, None, verdict, ratio, low, high, verdict == "slower")
    names = labels([a if a is not None else b for a, b in found])
    rows = [_changes(n, pair, tolerance, among) for n, pair in zip(names, found, strict=True)]
    return [whole, *(change for changes in rows for change in changes)]


def _changes(name: str, pair: Pair, tolerance: float, among: Noise) -> list[Change]:
    old, new = pair
    if not (isinstance(old, Row) and isinstance(new, Row)):
        return [_one_sided(name, old, new)]
    found = []
    for quantity in TIMES:
        a, b = getattr(old, quantity), getattr(new, quantity)
        ratio, low, high, verdict = moved(shift(old, new, quantity), tolerance, among)
        change = Change(name, f"{quantity}_ms", a.median, b.median, verdict, ratio, low, high)
        found.append(change._replace(regression=verdict == "slower"))
    for quantity in (*MEMORY, *EXACT):
        a, b = getattr(old, quantity), getattr(new, quantity)
        found.append(_exact(name, quantity, a, b, tolerance))
    return found


def _exact(name: str, quantity: str, old: int | None, new: int | None, tolerance: float) -> Change:
    verdict: Verdict = "same"
    if old is None or new is None:
        verdict = "same" if old == new else "added" if old is None else "gone"
        return Change(name, quantity, old, new, verdict)
    if old != new:
        verdict = "more" if new > old else "less"
    worse = quantity in MEMORY and new > old * (1 + tolerance)
    ratio = new / old if old else None
    return Change(name, quantity, old, new, verdict, ratio, regression=worse)


def _one_sided(name: str, old: Result | None, new: Result | None) -> Change:
    """A row that is not measured on both sides."""
    times = [r.latency_forward.median if isinstance(r, Row) else None for r in (old, new)]
    verdict: Verdict
    if old is None or new is None:
        verdict = "added" if old is None else "gone"
    elif isinstance(old, Row):
        verdict = "fails"
    else:
        verdict = "works" if isinstance(new, Row) else "fails still"
    regression = verdict == "fails"
    return Change(name, "latency_forward_ms", times[0], times[1], verdict, regression=regression)


def _values(rows: Sequence[Result], name: str) -> list[Any]:
    """The distinct values of one field, a device without its index."""
    known = [json.loads(row.identity()) for row in rows]
    values = {row[name] for row in known if name in row}
    return sorted({v.split(":")[0] for v in values} if name == "device" else values)


def _join(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def told(changes: Sequence[Change], tolerance: float) -> list[str]:
    """What moved as lines of text, regressions last, with a summary."""
    cells = [
        (
            "REGRESSION" if change.regression else "",
            change.row,
            change.quantity,
            f"{_number(change.old)} -> {_number(change.new)}",
            change.verdict,
            _ratio(change),
        )
        for change in changes
        if change.verdict != "same"
    ]
    widths = [max(map(len, column), default=0) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    worse = sum(change.regression for change in changes)
    rows = len({change.row for change in changes[1:]})
    summary = f"{worse} regression{'s' * (worse != 1)} past {tolerance:.0%}"
    return [*lines, f"{rows} rows compared: {summary if lines else 'nothing moved'}"]


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _ratio(change: Change) -> str:
    if change.ratio is None:
        return ""
    if change.low is None:
        return f"{change.ratio:.2f}"
    return f"{change.ratio:.2f} ({change.low:.2f} to {change.high:.2f})"
