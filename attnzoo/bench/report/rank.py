"""Which block is faster, as far as two runs would agree on it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from .columns import CONDITIONS, VERSIONS, PlainRow

TIE = 1.1  # least times repeat from run to run to a tenth
TASK = ("layout", "shape", *CONDITIONS, *VERSIONS)  # rows alike in these did the same
RANKS = {"rank": "latency_forward_ms", "rank_training": "latency_training_ms"}


def ranked(rows: Iterable[PlainRow], baseline: str | None = None) -> list[dict[str, Any]]:
    """The rows task by task, fastest forward pass first, failures last, with their ranks added.

    `rank` is by the forward pass, `rank_training` by forward and backward; `baseline_ratio` is the
    forward pass over the baseline block's of the same task. A failure gets none of them.
    """
    rows = list(rows)
    good = sorted((dict(row) for row in rows if "error" not in row), key=_order)
    for _, group in groupby(good, key=task):
        same = list(group)
        for field, latency in RANKS.items():
            for row, place in zip(same, ranks([r[latency] for r in same]), strict=True):
                row[field] = place
        base = [row["latency_forward_ms"] for row in same if row["block"] == baseline]
        for row in same if base else ():
            row["baseline_ratio"] = row["latency_forward_ms"] / base[0]
    return [*good, *(dict(row) for row in rows if "error" in row)]


def ranks(times: Sequence[float]) -> list[int]:
    """The rank of each time: one more than the number before its tie.

    A tie holds what is within a tenth of its own fastest, so that it never spans more.
    """
    found = [0] * len(times)
    first, place = 0.0, 0
    for before, i in enumerate(sorted(range(len(times)), key=lambda i: times[i])):
        if place == 0 or times[i] > TIE * first:
            first, place = times[i], before + 1
        found[i] = place
    return found


def task(row: Mapping[str, Any]) -> str:
    """What the row has in common with those it is ranked with."""
    return json.dumps([row.get(field) for field in TASK])


def _order(row: Mapping[str, Any]) -> tuple[str, float]:
    return task(row), row["latency_forward_ms"]
