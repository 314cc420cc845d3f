"""Rows as reports take them: ranked as far as two runs would agree, named, with conditions."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from ..columns import Column, PlainRow, amount, number, shapes, word
from ..row import Result, columns

TIE = 1.1  # least times repeat from run to run to a tenth
BUSY = 1.5  # of processes that want a processor, for each there is
VERSIONS = ("torch", "python", "attnzoo")
CONDITIONS = ("device", "device_name", "dtype", "autocast", "channels_last", "mode", "threads")
TASK = ("layout", "shape", *CONDITIONS, *VERSIONS)  # rows alike in these did the same
RANKS = {"rank": "latency_forward_ms", "rank_training": "latency_training_ms"}
MEANING = (
    "One MAC is one multiply-add, two FLOPs, of a convolution, matrix product or attention, of "
    "one sample's forward pass; times are of the whole batch, the least of all samples, ~ where "
    "it was reached once only; blocks of one layout and shape within a tenth share a rank."
)
COLUMNS = (
    Column("block", "name of the block; `attnzoo show NAME` prints more", word, 1, "block"),
    Column("rank", "place by the forward pass; a tenth is a tie", number, 4, "rank"),
    Column("/ baseline", "the forward pass over the baseline's", number, 3, "baseline_ratio"),
    *columns(),
    Column("rank fwd+bwd", "place by forward and backward", number, 0, "rank_training"),
)


def ranked(rows: Iterable[Result], baseline: str | None = None) -> list[dict[str, Any]]:
    """The rows as JSON has them, task by task, fastest forward pass first, failures last.

    Adds `rank` by the forward pass, `rank_training` by forward and backward, and `baseline_ratio`,
    the forward pass over the baseline block's of the same task. A failure gets none of them.
    """
    plain = [row.to_json() for row in rows]
    good = [row for row in plain if "error" not in row]
    good.sort(key=lambda row: (task(row), row["latency_forward_ms"]))
    for _, group in groupby(good, key=task):
        same = list(group)
        for field, latency in RANKS.items():
            for row, place in zip(same, ranks([r[latency] for r in same]), strict=True):
                row[field] = place
        base = [row["latency_forward_ms"] for row in same if row["block"] == baseline]
        for row in same if base else ():
            row["baseline_ratio"] = row["latency_forward_ms"] / base[0]
    return [*good, *(row for row in plain if "error" in row)]


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


def task(row: PlainRow) -> str:
    """What the row has in common with those it is ranked with."""
    return json.dumps([row.get(field) for field in TASK])


def differing(rows: Sequence[PlainRow]) -> list[str]:
    """The conditions and versions in which the rows differ."""
    names = (*CONDITIONS, *VERSIONS)
    return [key for key in names if len({json.dumps(row.get(key)) for row in rows}) > 1]


def filled(rows: Sequence[PlainRow]) -> list[Column]:
    """The columns these rows need: none that is empty, none that only says what all share."""
    good = [row for row in rows if "error" not in row]
    apart = [
        Column(key.replace("_", " "), "condition of the measurement", word, 3, key)
        for key in differing(good)
    ]
    known = [COLUMNS[0], *apart, *COLUMNS[1:]]
    return [
        column
        for column in known
        if column.key == "block" or any(row.get(column.key) is not None for row in good)
    ]


def label(row: PlainRow, rows: Sequence[PlainRow]) -> str:
    """The row's name among `rows`: its block, and in what it differs from the others."""
    mates = [other for other in rows if other["block"] == row["block"]]
    words = [f"{key}={row.get(key)}" for key in differing(rows)]
    for key, value in row["config"].items():
        if any(mate["config"].get(key) != value for mate in mates):
            words.append(f"{key}={value}")
    if any(mate["config"] == row["config"] and mate["shape"] != row["shape"] for mate in mates):
        words.append(shapes(row, "shape", True))
    return " ".join([row["block"], *words])


def heading(rows: Sequence[PlainRow]) -> str:
    """What the numbers mean and where they were taken, in words."""
    where = conditions(rows)
    return f"{', '.join(where.values())}. {MEANING}" if where else "Nothing could be measured."


def conditions(rows: Sequence[PlainRow]) -> dict[str, str]:
    """The conditions that hold for every measured row, in words; none where none is measured."""
    good = [row for row in rows if "error" not in row]
    if not good:
        return {}
    first, apart = good[0], differing(good)
    words = {
        "device": f"{first['device']} ({first['device_name']})",
        "dtype": first["dtype"],
        "autocast": "autocast" * first["autocast"],
        "channels_last": "channels_last" * first["channels_last"],
        "mode": first["mode"],
        "threads": f"{first['threads']} thread{'s' * (first['threads'] != 1)}",
        **{key: f"{key} {first[key]}" for key in VERSIONS},
        "memory bandwidth": f"copies at {_range(good, 'roof_bandwidth')}B/s",
        "matrix rate": f"matrix products at {_range(good, 'roof_macs')}MAC/s",
        "launch overhead": f"{_range(good, 'roof_launch_us')}us to call an operator",
        "load": _busy(good),
    }
    return {key: text for key, text in words.items() if text and key not in apart}


def _range(rows: Sequence[PlainRow], key: str) -> str:
    """A roof's value, or its least and largest where rows of other sizes have others."""
    values = [row[key] for row in rows]
    return " to ".join(dict.fromkeys(amount(end, " ") for end in (min(values), max(values))))


def _busy(rows: Sequence[PlainRow]) -> str:
    """A warning if the machine was busy, else an empty string."""
    load = max(row["load"] for row in rows)
    loose = sum(not row["latency_forward_settled"] for row in rows)
    if load <= BUSY:
        return ""
    return (
        f"BUSY MACHINE: up to {load:.1f} processes for each processor, {loose} of {len(rows)} "
        "forward times reached once only"
    )
