"""What moved between two runs, beyond the noise of the machine that both ran on."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from .results import Result
from .row import Latency, Row

MACHINE = ("device", "device_name", "threads", "torch", "python")  # alike, or nothing is compared
SETTINGS = ("dtype", "autocast", "channels_last", "mode")
TIMES = ("latency_forward", "latency_training")
MEMORY = ("memory_saved_bytes", "memory_peak_bytes")
EXACT = ("params", "macs", "macs_executed", "elementwise", "bytes_forward", "bytes_training")


class Change(NamedTuple):
    """One quantity of one row in both runs."""

    row: str
    quantity: str
    old: float | None  # None where that side has none
    new: float | None
    verdict: str  # same, slower, faster, more, less, fails, fails still, works, gone, added
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
    pairs = _pairs(old, new, keys)
    if not any(a is not None and b is not None for a, b in pairs):
        raise ValueError("OLD and NEW have no row in common: other blocks, configs or shapes")
    names = _labels([a or b for a, b in pairs if a or b])
    return [
        change
        for name, (a, b) in zip(names, pairs, strict=True)
        for change in _changes(name, a, b, tolerance)
    ]


def moved(
    old: Latency, new: Latency, drift: float, tolerance: float
) -> tuple[str, float, float, float]:
    """Verdict, ratio and its interval for one time; `drift` is how much slower the machine got.

    The interval runs from the fastest plausible new over the slowest plausible old (20th over 80th
    percentile) to the other extreme. A time moved where that interval leaves out 1 and the ratio
    is past the tolerance.
    """
    ratio = new.median / old.median / drift
    low, high = new.p20 / old.p80 / drift, new.p80 / old.p20 / drift
    if low > 1 and ratio > 1 + tolerance:
        return "slower", ratio, low, high
    if high < 1 and ratio < 1 / (1 + tolerance):
        return "faster", ratio, low, high
    return "same", ratio, low, high


def _changes(name: str, old: Result | None, new: Result | None, tolerance: float) -> list[Change]:
    if not (isinstance(old, Row) and isinstance(new, Row)):
        return [_one_sided(name, old, new)]
    drift = new.pulse_ms / old.pulse_ms
    found = []
    for quantity in TIMES:
        before, after = getattr(old, quantity), getattr(new, quantity)
        verdict, *interval = moved(before, after, drift, tolerance)
        found.append(
            Change(
                name,
                f"{quantity}_ms",
                before.median,
                after.median,
                verdict,
                *interval,
                regression=verdict == "slower",
            )
        )
    for quantity in (*MEMORY, *EXACT):
        found.append(
            _exact(name, quantity, getattr(old, quantity), getattr(new, quantity), tolerance)
        )
    return found


def _exact(name: str, quantity: str, old: int | None, new: int | None, tolerance: float) -> Change:
    verdict = "same"
    if old is None or new is None:
        verdict = "same" if old == new else "added" if old is None else "gone"
        return Change(name, quantity, old, new, verdict)
    if old != new:
        verdict = "more" if new > old else "less"
    worse = quantity in MEMORY and new > old * (1 + tolerance)
    return Change(name, quantity, old, new, verdict, new / old if old else None, regression=worse)


def _one_sided(name: str, old: Result | None, new: Result | None) -> Change:
    """A row that is not measured on both sides."""
    times = [r.latency_forward.median if isinstance(r, Row) else None for r in (old, new)]
    if old is None or new is None:
        verdict = "added" if old is None else "gone"
    elif isinstance(old, Row):
        verdict = "fails"
    else:
        verdict = "works" if isinstance(new, Row) else "fails still"
    return Change(name, "latency_forward_ms", *times, verdict, regression=verdict == "fails")


def _pairs(
    old: Sequence[Result], new: Sequence[Result], keys: Sequence[str]
) -> list[tuple[Result | None, Result | None]]:
    """Rows of both runs side by side; a failure pairs by what is known of it."""
    rest = [(row, _key(row, keys)) for row in new]
    for side, rows in (("OLD", old), ("NEW", new)):
        _distinct(side, rows, keys)
    pairs: list[tuple[Result | None, Result | None]] = []
    for row in old:
        mine = _key(row, keys)
        mate = next((pair for pair in rest if _agree(mine, pair[1])), None)
        if mate is not None:
            rest.remove(mate)
        pairs.append((row, mate and mate[0]))
    return [*pairs, *((None, row) for row, _ in rest)]


def _distinct(side: str, rows: Sequence[Result], keys: Sequence[str]) -> None:
    seen = set()
    for row in rows:
        name = json.dumps(_key(row, keys), sort_keys=True)
        if name in seen:
            raise ValueError(f"{side} has two rows of {row.block} alike in {', '.join(keys)}")
        seen.add(name)


def _agree(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(old[name] == new[name] for name in old.keys() & new.keys())


def _key(row: Result, keys: Sequence[str]) -> dict[str, Any]:
    known = json.loads(row.identity())
    return {name: known[name] for name in keys if name in known}


def _labels(rows: Sequence[Result]) -> list[str]:
    """Each row's block, with whatever tells it from the block's other rows."""
    known = [json.loads(row.identity()) for row in rows]
    labels = []
    for mine in known:
        flat = _flat(mine)
        twins = [_flat(other) for other in known if other["block"] == mine["block"]]
        telling = [n for n in flat if any(twin.get(n) != flat[n] for twin in twins)]
        labels.append(" ".join([mine["block"], *(f"{n}={flat[n]}" for n in telling)]))
    return labels


def _flat(known: dict[str, Any]) -> dict[str, str]:
    """What may tell two rows of a block apart, as text."""
    shape = " + ".join(map(_shape, known.get("shape", {}).values()))
    settings = {name: str(known[name]) for name in SETTINGS if name in known}
    return {**{k: str(v) for k, v in known.get("config", {}).items()}, "shape": shape, **settings}


def _shape(value: list[Any]) -> str:
    if value and isinstance(value[0], list):
        return f"[{', '.join(map(_shape, value))}]"
    return "x".join(map(str, value))


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
    rows = len({change.row for change in changes})
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
