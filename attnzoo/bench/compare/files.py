"""Compares two result files: counts exactly, memory and times with a tolerance."""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..report.table import CONDITIONS, label
from ..row import Result, Row
from .interleave import Change

TIMES_PAST = 0.25  # by which runs of unchanged code may differ on a busy machine
TIMES = ("latency_forward_ms", "latency_training_ms")
MEMORY = ("memory_saved_bytes", "memory_peak_bytes")
COUNTS = ("params", "macs", "macs_executed", "elementwise", "bytes_forward", "bytes_training")
TRAINING = ("macs_executed_training", "elementwise_training")


def compare(
    a: Sequence[Result], b: Sequence[Result], *, tolerance: float, allow_different: bool = False
) -> list[Change]:
    """Every quantity of every row that either run has, with its verdict.

    Rows are compared whose conditions are the same, except the version of attnzoo.

    Raises:
        ValueError: the runs have no row in common, or one of them has a row twice.
    """
    keys = ["block", "config", "shape", *(() if allow_different else CONDITIONS[:-1])]
    rows_a, rows_b = (_by_key(side, rows, keys) for side, rows in (("A", a), ("B", b)))
    if not rows_a.keys() & rows_b.keys():
        sides = [[row.identity() for row in rows] for rows in (a, b)]
        values = {key: [sorted({str(i.get(key)) for i in side}) for side in sides] for key in keys}
        words = "; ".join(f"{key}: {x} and {y}" for key, (x, y) in values.items() if x != y)
        raise ValueError(
            f"A and B have no row in common; they differ in {words}. --allow-different ignores "
            "machine, versions and settings"
        )
    pairs = [(rows_a.get(key), rows_b.get(key)) for key in {**rows_a, **rows_b}]
    measured = [row.to_json() for row in a if isinstance(row, Row)]
    return [change for pair in pairs for change in _changes(*pair, measured, tolerance)]


def _by_key(side: str, rows: Sequence[Result], keys: Sequence[str]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for row in rows:
        key = json.dumps([row.identity().get(name) for name in keys], sort_keys=True)
        if key in found:
            raise ValueError(f"{side} has two rows of {row.block} alike in {', '.join(keys)}")
        found[key] = row
    return found


def _changes(
    a: Result | None, b: Result | None, rows: list[dict[str, Any]], tolerance: float
) -> Iterator[Change]:
    if isinstance(a, Row) and isinstance(b, Row):
        before, after = a.to_json(), b.to_json()
        name = label(before, rows)
        for quantity in (*TIMES, *MEMORY, *COUNTS, *TRAINING):
            x, y = before[quantity], after[quantity]
            yield Change(name, quantity, x, y, _verdict(quantity, x, y, tolerance))
    elif a is None or b is None:
        known = b if a is None else a
        if known is not None:
            yield Change(known.block, "row", None, None, "added" if a is None else "gone")
    else:
        verdict = "fails" if isinstance(a, Row) else "works" if isinstance(b, Row) else "same"
        yield Change(a.block, "row", None, None, verdict)


def _verdict(quantity: str, a: float | None, b: float | None, tolerance: float) -> str:
    if a is None or b is None:
        return "same" if a == b else "added" if a is None else "gone"
    if quantity in TIMES:
        far = abs(math.log(b / a)) > math.log1p(max(TIMES_PAST, tolerance))
        return "same" if not far else "slower" if b > a else "faster"
    if quantity in MEMORY and b > a * (1 + tolerance):
        return "larger"
    return "same" if a == b else "more" if b > a else "less"
