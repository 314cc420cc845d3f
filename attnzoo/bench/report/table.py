"""Rows as text: for a terminal, in Markdown, LaTeX and CSV; all of them from plain JSON rows."""

import csv
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from .columns import BUSY, COLUMNS, VERSIONS, Column, PlainRow, amount, columns, differing, shapes
from .rank import RANKS, ranked, task

MEANING = (
    "One MAC is one multiply-add, two FLOPs, of a convolution, matrix product or attention, of "
    "one sample's forward pass; times are of the whole batch, the least of all samples, ~ where "
    "it was reached once only; blocks of one layout and shape within a tenth share a rank."
)
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}


class Written(Protocol):
    """A record that writes itself as JSON, such as a `Row` or a `Failure`."""

    def to_json(self) -> dict[str, Any]:
        """Its fields as plain JSON values."""


def plain(rows: Iterable[Written | PlainRow]) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [dict(row) if isinstance(row, Mapping) else row.to_json() for row in rows]


def heading(rows: Sequence[PlainRow]) -> str:
    """What the numbers mean and where they were taken, in words."""
    good = [row for row in rows if "error" not in row]
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
        "memory bandwidth": f"copies at {_range(rows, 'roof_bandwidth')}B/s",
        "matrix rate": f"matrix products at {_range(rows, 'roof_macs')}MAC/s",
        "launch overhead": f"{_range(rows, 'roof_launch_us')}us to call an operator",
        "load": busy(rows),
    }
    return {key: text for key, text in words.items() if text and key not in apart}


def busy(rows: Sequence[PlainRow]) -> str:
    """A warning if the machine was busy, else an empty string."""
    loads = [row["load"] for row in rows if row.get("load")]
    if not loads or max(loads) <= BUSY:
        return ""
    loose = sum(not row.get("latency_forward_settled", True) for row in rows)
    return (
        f"BUSY MACHINE: up to {max(loads):.1f} processes for each processor, {loose} of "
        f"{len(rows)} forward times reached once only"
    )


def terminal(
    rows: Iterable[Written | PlainRow],
    columns: Sequence[str] | None = None,
    baseline: str | None = None,
    width: int | None = None,
) -> str:
    """The table as lines no wider than the terminal, one part for each layout and shape.

    Args:
        columns: titles of the columns to show, whatever the width; default: those that fit.
        baseline: a block for the column of times over its.
        width: of the terminal; default: what it says, 80 where it says nothing.
    """
    found = ranked(plain(rows), baseline)
    shown = _chosen(found, columns, width or shutil.get_terminal_size().columns)
    table = [[column.title for column in shown], *(_brief(row, shown) for row in found)]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = [_line(table[0], widths, shown)]
    parts = groupby(zip(found, table[1:], strict=True), key=lambda pair: task(pair[0]))
    for _, part in parts:
        pairs = list(part)
        first = pairs[0][0]
        if "error" not in first:
            lines.append(f"-- {first['layout']} {shapes(first['shape'])}")
        for row, cells in pairs:
            failed = f"{row['block']}  not measured: {row.get('error')}"
            lines.append(failed if "error" in row else _line(cells, widths, shown))
    return "\n".join([*lines, heading(found)])


def _chosen(rows: Sequence[PlainRow], titles: Sequence[str] | None, width: int) -> list[Column]:
    """The columns asked for, or as many as fit, the most important first."""
    known = {column.title: column for column in columns(rows)}
    if titles:
        require_titles(titles)
        return [known[title] for title in dict.fromkeys(["block", *titles]) if title in known]
    chosen: set[str] = set()
    room = width
    for column in sorted((c for c in known.values() if c.brief), key=lambda c: c.brief):
        needs = max(len(column.title), *(len(_brief(row, [column])[0]) for row in rows), 0) + 2
        if needs <= room or column.title == "block":
            chosen.add(column.title)
            room -= needs
    return [column for column in known.values() if column.title in chosen]


def require_titles(titles: Sequence[str]) -> None:
    """Raise ValueError where a column has none of these titles."""
    legal = ["block", *(column.title for column in COLUMNS)]
    for title in titles:
        if title not in legal:
            raise ValueError(f"--columns {title!r} must be of {', '.join(legal)}")


def _brief(row: PlainRow, shown: Sequence[Column]) -> list[str]:
    if "error" in row:
        return [str(row["block"]) if column.title == "block" else "" for column in shown]
    return [(column.short or column.text)(row) for column in shown]


def _line(cells: Sequence[str], widths: Sequence[int], shown: Sequence[Column]) -> str:
    return "  ".join(
        f"{cell:>{width}}" if column.number else f"{cell:<{width}}"
        for cell, width, column in zip(cells, widths, shown, strict=True)
    ).rstrip()


def markdown(rows: Iterable[Written | PlainRow], command: str, baseline: str | None = None) -> str:
    """The table as Markdown, with the command that made it."""
    found = ranked(plain(rows), baseline)
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


def latex(rows: Iterable[Written | PlainRow], baseline: str | None = None) -> str:
    """The measured rows' main columns as a LaTeX table with the rules of booktabs."""
    found = [row for row in ranked(plain(rows), baseline) if "error" not in row]
    shown = [column for column in columns(found) if column.brief]
    head = " & ".join(_tex(column.title) for column in shown)
    body = [" & ".join(map(_tex, _brief(row, shown))) + r" \\" for row in found]
    kinds = "".join("r" if column.number else "l" for column in shown)
    top = [f"% {heading(found)}", f"\\begin{{tabular}}{{{kinds}}}", r"\toprule"]
    return "\n".join(
        [*top, head + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
    )


def cells(row: PlainRow, shown: Sequence[Column]) -> list[str]:
    """A row's columns as text; a failure has no number."""
    if "error" not in row:
        return [column.text(row) for column in shown]
    return [str(row["block"]) if c.title == "block" else "" for c in shown[:-1]] + ["not measured"]


def table_csv(rows: Iterable[Written | PlainRow], baseline: str | None = None) -> str:
    """Every field of every row as JSON has it, and the ranks; nested values stay JSON."""
    found = ranked(plain(rows), baseline)
    fields = list(dict.fromkeys(["block", *RANKS, *(key for row in found for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _field(value) for key, value in row.items()} for row in found)
    return text.getvalue()


def _range(rows: Sequence[PlainRow], key: str) -> str:
    """A roof's value, or its least and largest where rows of other sizes have others."""
    values = [row[key] for row in rows if row.get(key)] or [0]
    return " to ".join(dict.fromkeys(amount(end, " ") for end in (min(values), max(values))))


def _field(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (bool, dict, list)) else value


def _safe(text: str) -> str:
    """The text without what Markdown or HTML would act on."""
    for character, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("\n", " ")):
        text = text.replace(character, instead)
    return text


def _tex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
