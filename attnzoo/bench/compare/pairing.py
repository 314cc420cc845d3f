"""Two result files: counts exactly, memory beyond a tolerance, times only where they moved far."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..row import Result, Row

TIMES_PAST = 0.25  # how far two runs of unchanged code are apart on a busy machine
MACHINE = ("device", "device_name", "threads", "torch", "python")  # alike, or nothing is compared
SETTINGS = ("dtype", "autocast", "channels_last", "mode")
TIMES = ("latency_forward", "latency_training")
MEMORY = ("memory_saved_bytes", "memory_peak_bytes")
COUNTS = (
    "params",
    "macs",
    "macs_executed",
    "macs_executed_training",
    "elementwise",
    "elementwise_training",
    "bytes_forward",
    "bytes_training",
)
Pair = tuple[Result | None, Result | None]


class Change(NamedTuple):
    """One quantity of one row in both runs."""

    row: str
    quantity: str
    a: float | None  # None where that side has none
    b: float | None
    verdict: str  # same, more, less, slower, faster, fails, works, gone, added
    regression: bool = False

    @property
    def ratio(self) -> float | None:
        """The second over the first."""
        return self.b / self.a if self.a and self.b is not None else None


def compare(
    a: Sequence[Result], b: Sequence[Result], *, tolerance: float, allow_different: bool = False
) -> list[Change]:
    """Every quantity of every row that either run has, with its verdict.

    Raises:
        ValueError: the runs differ in machine, versions or settings, have no row in common, or one
            of them has a row twice.
    """
    ignored = differing(a, b)
    if ignored and not allow_different:
        words = "; ".join(f"{name}: {_join(x)} and {_join(y)}" for name, (x, y) in ignored.items())
        raise ValueError(f"A and B differ in {words}. --allow-different compares them even so")
    keys = [name for name in ("block", "config", "shape", *SETTINGS) if name not in ignored]
    found = pairs(a, b, keys)
    if all(None in pair for pair in found):
        raise ValueError("A and B have no row in common: other blocks, configs or shapes")
    names = labels([x if x is not None else y for x, y in found])
    return [c for n, pair in zip(names, found, strict=True) for c in _changes(n, pair, tolerance)]


def differing(a: Sequence[Result], b: Sequence[Result]) -> dict[str, tuple[Any, Any]]:
    """Machine, versions and settings in which two runs differ, with each side's values.

    attnzoo's own version is not among them: two versions of it are what one compares.
    """
    sides = {name: (_values(a, name), _values(b, name)) for name in (*MACHINE, *SETTINGS)}
    return {
        name: (x, y)
        for name, (x, y) in sides.items()
        if x and y and (x != y if name in MACHINE else not set(x) & set(y))
    }


def pairs(a: Sequence[Result], b: Sequence[Result], keys: Sequence[str]) -> list[Pair]:
    """Rows of both runs side by side; a failure pairs by what is known of it."""
    rest = [(row, _key(row, keys)) for row in b]
    for side, rows in (("A", a), ("B", b)):
        seen = [json.dumps(_key(row, keys), sort_keys=True) for row in rows]
        for row, key in zip(rows, seen, strict=True):
            if seen.count(key) > 1:
                raise ValueError(f"{side} has two rows of {row.block} alike in {', '.join(keys)}")
    found: list[Pair] = []
    for row in a:
        mine = _key(row, keys)
        alike = [pair for pair in rest if _agree(mine, pair[1])]
        if alike:
            rest.remove(alike[0])
        found.append((row, alike[0][0] if alike else None))
    return [*found, *((None, row) for row, _ in rest)]


def labels(rows: Sequence[Result | None]) -> list[str]:
    """Each row's block, with whatever distinguishes it from the block's other rows."""
    known = [json.loads(row.identity()) for row in rows if row is not None]
    flat = [
        {**k.get("config", {}), "shape": k.get("shape"), **{n: k.get(n) for n in SETTINGS}}
        for k in known
    ]
    names = []
    for mine, values in zip(known, flat, strict=True):
        twins = [f for k, f in zip(known, flat, strict=True) if k["block"] == mine["block"]]
        words = [f"{n}={v}" for n, v in values.items() if any(t.get(n) != v for t in twins)]
        names.append(" ".join([mine["block"], *words]))
    return names


def _changes(name: str, pair: Pair, tolerance: float) -> Iterator[Change]:
    a, b = pair
    if not (isinstance(a, Row) and isinstance(b, Row)):
        if a is None or b is None:
            verdict = "added" if a is None else "gone"
        else:
            verdict = "fails" if isinstance(a, Row) else "works" if isinstance(b, Row) else "same"
        yield Change(name, "row", None, None, verdict, verdict == "fails")
        return
    for quantity in TIMES:
        x, y = getattr(a, quantity).best, getattr(b, quantity).best
        far = abs(math.log(y / x)) > math.log1p(max(TIMES_PAST, tolerance))
        verdict = "same" if not far else "slower" if y > x else "faster"
        yield Change(name, f"{quantity}_ms", x, y, verdict, verdict == "slower")
    for quantity in (*MEMORY, *COUNTS):
        x, y = getattr(a, quantity), getattr(b, quantity)
        if x != y:
            verdict = "added" if x is None else "gone" if y is None else "more" if y > x else "less"
            worse = verdict == "more" and quantity in MEMORY and y > x * (1 + tolerance)
            yield Change(name, quantity, x, y, verdict, worse)
        else:
            yield Change(name, quantity, x, y, "same")


def _agree(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[name] == b[name] for name in a.keys() & b.keys())


def _key(row: Result, keys: Sequence[str]) -> dict[str, Any]:
    known = json.loads(row.identity())
    return {name: known[name] for name in keys if name in known}


def _values(rows: Sequence[Result], name: str) -> list[Any]:
    """The distinct values of one field, a device without its index."""
    known = [json.loads(row.identity()) for row in rows]
    values = {row[name] for row in known if name in row}
    return sorted({v.split(":")[0] for v in values} if name == "device" else values)


def _join(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
