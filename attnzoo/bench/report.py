"""Rows as a terminal table, Markdown, CSV and a page; all of them from plain JSON rows."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table
from rich.text import Text

from . import results
from .columns import VERSIONS, Column, PlainRow, amount, columns, differing
from .page import page
from .plots import pictures
from .rank import RANKS, ranked, task

MEANING = (
    "One MAC is one multiply-add, two FLOPs, of a convolution, matrix product or attention, "
    "of one sample's forward pass; min bytes is what any implementation must move in a forward "
    "pass over the batch; saved bytes is what autograd keeps for the backward pass; latency is "
    "the median over the batch (20th to 80th percentile); blocks of one layout and shape whose "
    "intervals overlap share a rank."
)


class Written(Protocol):
    """A record that says itself in JSON, such as a `Row` or a `Failure`."""

    def to_json(self) -> dict[str, Any]:
        """Its fields as plain JSON values."""


def heading(rows: Sequence[Written | PlainRow]) -> str:
    """What the numbers mean and where they were taken, in words."""
    good = [row for row in plain(rows) if "error" not in row]
    if not good:
        return "Nothing could be measured."
    return f"{', '.join(conditions(good).values())}. {MEANING}"


def conditions(rows: Sequence[PlainRow]) -> dict[str, str]:
    """The conditions that hold for every one of these measured rows, in words."""
    first, apart = rows[0], differing(rows)
    words = {
        "device": f"{first['device']} ({first.get('device_name', '')})",
        "dtype": str(first["dtype"]),
        "autocast": "autocast" * bool(first.get("autocast")),
        "channels_last": "channels_last" * bool(first.get("channels_last")),
        "mode": str(first.get("mode") or ""),
        "threads": f"{first['threads']} thread{'s' * (first['threads'] != 1)}",
        **{key: f"{key} {first.get(key)}" for key in VERSIONS},
    }
    if any(row.get("roof_bandwidth") for row in rows):
        words |= {
            "memory bandwidth": f"copies at {_range(rows, 'roof_bandwidth')}B/s",
            "matrix rate": f"matrix products at {_range(rows, 'roof_macs')}MAC/s",
            "launch overhead": f"{_range(rows, 'roof_launch_us')}us to call an operator",
        }
    return {key: text for key, text in words.items() if text and key not in apart}


def _range(rows: Sequence[PlainRow], key: str) -> str:
    """A roof's value, or its least and largest where rows of other sizes have others."""
    values = [row[key] for row in rows if row.get(key)]
    return " to ".join(dict.fromkeys(amount(end, " ") for end in (min(values), max(values))))


def terminal(rows: Iterable[Written | PlainRow]) -> Table:
    """The table as rich prints it; a failure says why in a line below."""
    found = ranked(plain(rows))
    shown = [
        replace(column, text=column.short or column.text)
        for column in columns(found)
        if column.brief
    ]
    table = Table(caption=Text(heading(found)), caption_justify="left")
    for column in shown:
        table.add_column(column.title, justify="right" if column.number else "left")
    for before, row in zip([None, *found], found, strict=False):
        if before is not None and task(before) != task(row):
            table.add_section()
        table.add_row(*map(Text, cells(row, shown)))
    return table


def markdown(rows: Iterable[Written | PlainRow], command: str) -> str:
    """The table as Markdown, with the command that made it."""
    found = ranked(plain(rows))
    shown = columns(found)
    lines = [
        f"`{command}`",
        "",
        _safe(heading(found)),
        "",
        "| " + " | ".join(column.title for column in shown) + " |",
        "|" + "|".join("---:" if column.number else "---" for column in shown) + "|",
        *("| " + " | ".join(map(_safe, cells(row, shown))) + " |" for row in found),
        *(f"\n{_safe(r['block'])} has no row: {_safe(r['error'])}" for r in found if "error" in r),
    ]
    return "\n".join(lines) + "\n"


def cells(row: PlainRow, shown: Sequence[Column]) -> list[str]:
    """A row's columns as text; a failure has no number."""
    if "error" not in row:
        return [column.text(row) for column in shown]
    texts = {"block": str(row["block"]), "layout": "not measured"}
    return [texts.get(column.title, "") for column in shown]


def table_csv(rows: Iterable[Written | PlainRow]) -> str:
    """Every field of every row as JSON has it, and the ranks; nested values stay JSON."""
    found = ranked(plain(rows))
    fields = list(dict.fromkeys(["block", *RANKS, *(key for row in found for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _field(value) for key, value in row.items()} for row in found)
    return text.getvalue()


def write(rows: Sequence[Written | PlainRow], folder: Path, command: str) -> tuple[Path, ...]:
    """Write `bench.md`, `.csv`, `.html` and `plots/` into `folder`; returns their paths.

    Rows may be records or plain rows read back from a `bench.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = ranked(plain(rows))
    drawn = pictures(found, folder / "plots")
    texts = {
        "bench.md": markdown(found, command),
        "bench.csv": table_csv(found),
        "bench.html": page(found, *_header(found, command), drawn),
    }
    for name, text in texts.items():
        results.replace(folder / name, text.encode())
    return (*(folder / name for name in texts), *([folder / "plots"] if drawn else []))


def plain(rows: Iterable[Written | PlainRow]) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [dict(row) if isinstance(row, Mapping) else row.to_json() for row in rows]


def _header(rows: Sequence[PlainRow], command: str) -> tuple[str, list[tuple[str, str]]]:
    """What a page says above its table, and where and how the rows were measured."""
    good = [row for row in rows if "error" not in row]
    where = conditions(good) if good else {}
    said = MEANING if good else heading(rows)
    return said, [("command", command), *where.items(), ("rows", _counted(rows, good))]


def _counted(rows: Sequence[PlainRow], good: Sequence[PlainRow]) -> str:
    return f"{len(good)} measured, {len(rows) - len(good)} failed"


def _field(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (bool, dict, list)) else value


def _safe(text: str) -> str:
    """The text without what Markdown or HTML would act on."""
    for character, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("\n", " ")):
        text = text.replace(character, instead)
    return text
