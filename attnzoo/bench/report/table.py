"""Rows as text: for a terminal, in Markdown, LaTeX and CSV."""

import csv
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from ..columns import Column, PlainRow, shapes
from ..row import Result
from .rows import COLUMNS, RANKS, filled, heading, ranked, task

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
MARKDOWN = {"&": "&amp;", "<": "&lt;", "|": "&#124;", "\n": " "}


def terminal(
    rows: Iterable[Result],
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
    found = ranked(rows, baseline)
    shown = filled(found)
    if columns:
        require_titles(columns)
        named = {column.title: column for column in shown}
        shown = [named[title] for title in dict.fromkeys(["block", *columns]) if title in named]
    else:
        shown = _fitting(found, shown, width or shutil.get_terminal_size().columns)
    widths = [_width(found, column) for column in shown]

    def line(cells: Iterable[str]) -> str:
        padded = zip(cells, widths, shown, strict=True)
        return "  ".join(c.rjust(w) if col.numeric else c.ljust(w) for c, w, col in padded).rstrip()

    lines = [line(column.title for column in shown)]
    for _, part in groupby(found, key=task):
        for place, row in enumerate(part):
            if "error" in row:
                lines.append(f"{row['block']}  not measured: {row['error']}")
                continue
            if place == 0:
                lines.append(f"-- {row['layout']} {shapes(row, 'shape', True)}")
            lines.append(line(column.text(row, brief=True) for column in shown))
    return "\n".join([*lines, heading(found)])


def _fitting(rows: Sequence[PlainRow], known: Sequence[Column], room: int) -> list[Column]:
    """As many columns as there is room for, the most important first; the block's at any rate."""
    chosen = set()
    for column in sorted((c for c in known if c.room), key=lambda c: c.room):
        needed = _width(rows, column) + 2
        if needed <= room or column.key == "block":
            chosen.add(column.title)
            room -= needed
    return [column for column in known if column.title in chosen]


def _width(rows: Sequence[PlainRow], column: Column) -> int:
    return max(len(column.title), *(len(column.text(row, brief=True)) for row in rows), 0)


def require_titles(titles: Sequence[str]) -> None:
    """Raise ValueError where a column has none of these titles."""
    legal = [column.title for column in COLUMNS]
    for title in titles:
        if title not in legal:
            raise ValueError(f"--columns {title!r} must be of {', '.join(legal)}")


def markdown(rows: Iterable[Result], command: str, baseline: str | None = None) -> str:
    """The table as Markdown, with the command that made it; below it what could not be measured."""
    found = ranked(rows, baseline)
    shown = filled(found)

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    lines = [f"`{command}`", "", _escaped(heading(found), MARKDOWN), ""]
    lines.append(line(column.title for column in shown))
    lines.append(line("---:" if column.numeric else "---" for column in shown))
    for row in found:
        if "error" in row:
            lines += ["", _escaped(f"{row['block']} has no row: {row['error']}", MARKDOWN)]
        else:
            lines.append(line(_escaped(column.text(row), MARKDOWN) for column in shown))
    return "\n".join([*lines, ""])


def latex(rows: Iterable[Result], baseline: str | None = None) -> str:
    """The measured rows' main columns as a LaTeX table with the rules of booktabs."""
    found = [row for row in ranked(rows, baseline) if "error" not in row]
    shown = [column for column in filled(found) if column.room]
    kinds = "".join("r" if column.numeric else "l" for column in shown)

    def line(cells: Iterable[str]) -> str:
        return " & ".join(_escaped(cell, LATEX) for cell in cells) + r" \\"

    return "\n".join(
        [
            f"% {heading(found)}",
            f"\\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            line(column.title for column in shown),
            r"\midrule",
            *(line(column.text(row, brief=True) for column in shown) for row in found),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def table_csv(rows: Iterable[Result], baseline: str | None = None) -> str:
    """Every field of every row as JSON has it, and the ranks; nested values stay JSON."""
    found = ranked(rows, baseline)
    text = io.StringIO()
    fields = dict.fromkeys(key for row in found for key in ("block", *RANKS, *row))
    writer = csv.DictWriter(text, list(fields), lineterminator="\n")
    writer.writeheader()
    for row in found:
        nested = {k: json.dumps(v) for k, v in row.items() if isinstance(v, (bool, dict, list))}
        writer.writerow({**row, **nested})
    return text.getvalue()


def _escaped(text: str, instead: Mapping[str, str]) -> str:
    """The text without what Markdown, HTML or LaTeX would act on."""
    return "".join(instead.get(character, character) for character in text)
