"""Which block is faster, where that is certain; a tie where it is not."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from .columns import CONDITIONS, VERSIONS

# Rows that agree in these are the same task on the same machine: only they are ranked together.
TASK = ("layout", "shape", *CONDITIONS, *VERSIONS)
RANKS = {"rank": "latency_forward", "rank_training": "latency_training"}


def ranked(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows task by task, fastest forward pass first, failures last, with their ranks added.

    `rank` is by the forward pass, `rank_training` by forward and backward; see `ranks`. A row
    that failed gets neither.
    """
    good = sorted((dict(row) for row in rows if "error" not in row), key=_order)
    for _, group in groupby(good, key=task):
        same = list(group)
        for field, latency in RANKS.items():
            spans = [(row[f"{latency}_p20_ms"], row[f"{latency}_p80_ms"]) for row in same]
            for row, place in zip(same, ranks(spans), strict=True):
                row[field] = place
    return [*good, *(dict(row) for row in rows if "error" in row)]


def ranks(spans: list[tuple[float, float]]) -> list[int]:
    """The rank of each interval: one more than the number of intervals before its tie.

    Two intervals that overlap, or touch, are a tie. Overlap does not carry over from one pair to
    the next, so a tie runs along a chain: where A overlaps B and B overlaps C, all three share a
    rank, and two ranks differ only where a gap lies between everything on its two sides.
    """
    found = [0] * len(spans)
    for tie in _ties(spans):
        before = min(tie.values())
        for i in tie:
            found[i] = before
    return found


def task(row: Mapping[str, Any]) -> str:
    """What the row has in common with those it is ranked with."""
    return json.dumps([row.get(field) for field in TASK])


def _ties(spans: list[tuple[float, float]]) -> Iterator[dict[int, int]]:
    """Chains of overlapping intervals: index to place in the order of lower ends, from 1."""
    tie: dict[int, int] = {}
    end = float("-inf")
    for place, i in enumerate(sorted(range(len(spans)), key=lambda i: spans[i]), start=1):
        low, high = spans[i]
        if low > end and tie:
            yield tie
            tie = {}
        tie[i] = place
        end = max(end, high)
    if tie:
        yield tie


def _order(row: Mapping[str, Any]) -> tuple[str, float]:
    return task(row), row["latency_forward_ms"]
