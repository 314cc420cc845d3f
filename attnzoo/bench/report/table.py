"""Tables of rows: ranked, with the columns they need and the conditions they share."""

import csv
import io
import json
import shutil
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from ..row import (
    Column,
    PlainRow,
    Result,
    amount,
    count,
    keywords,
    percent,
    ratio,
    row_columns,
    shapes,
    word,
)

TIE = 1.1  # minimum times of two runs agree to a tenth
BUSY = 1.5  # load average per processor
CONDITIONS = (
    *("device", "device_name", "dtype", "autocast", "channels_last", "mode", "threads"),
    *("torch", "python", "attnzoo"),
)
RANKS = {"rank": "latency_forward_ms", "rank_training": "latency_training_ms"}
MEANING = (
    "One MAC is one multiply-add, two FLOPs, of a convolution, matrix product or attention in the "
    "forward pass of one sample. Times are minima of all samples, for the whole batch; ~: no other "
    "round of samples reached it; ±: how far the 80th percentile lies above it. Blocks of one "
    "layout and shape whose times are within a tenth share a rank."
)
COLUMNS = (
    Column("block", "name of the block; `attnzoo show NAME` prints more", word, 1, "block"),
    Column("rank", "by the forward pass; within a tenth is a tie", count, 3, "rank"),
    Column("/ baseline", "forward time over that of the baseline", ratio, 2, "baseline_ratio"),
    *row_columns(),
    Column("±", "80th percentile of the forward time above its minimum", percent, 2, "spread"),
    Column("disturbed", "forward samples that were disturbed", percent, 4, "disturbed"),
    Column("rank fwd+bwd", "rank by forward and backward", count, 0, "rank_training"),
)


class Table:
    """Rows as JSON has them, grouped by layout, shape and conditions, the fastest first.

    Args:
        rows: of any number of runs.
        baseline: a block for the column of ratios.
        titles: of the columns; default: all that are not empty.
    """

    def __init__(
        self, rows: Iterable[Result], baseline: str | None = None, titles: Sequence[str] = ()
    ) -> None:
        require_titles(titles)
        plain = [row.to_json() for row in rows]
        self.failed = [row for row in plain if "error" in row]
        self.measured = [row for row in plain if "error" not in row]
        self.measured.sort(key=lambda row: (group(row), row["latency_forward_ms"]))
        for _, same in groupby(self.measured, key=group):
            _compare(list(same), baseline)
        apart = differing(self.measured)
        known = [Column(key, "a condition of the measurement", word, 2, key) for key in apart]
        known = [COLUMNS[0], *known, *COLUMNS[1:]]
        self.columns = [
            column
            for column in known
            if (column.title in ("block", *titles) or not titles)
            and (column.key == "block" or any(r.get(column.key) is not None for r in self.measured))
        ]
        self.conditions = _conditions(self.measured, apart) if self.measured else []
        self.meaning = MEANING if self.measured else "Nothing could be measured."
        self.heading = f"{', '.join(self.conditions)}. {self.meaning}".removeprefix(". ")

    def formatted(self, format: str, columns: Sequence[Column]) -> str:
        """The measured rows in a format of tabulate's."""
        from tabulate import tabulate

        text: str = tabulate(
            [[column.text(row) for column in columns] for row in self.measured],
            [column.title for column in columns],
            tablefmt=format,
            colalign=["right" if column.numeric else "left" for column in columns],
            disable_numparse=True,
        )
        return text


def terminal(
    rows: Iterable[Result],
    columns: Sequence[str] | None = None,
    baseline: str | None = None,
    width: int | None = None,
) -> str:
    """The table as lines no wider than the terminal, one part for each layout and shape.

    Args:
        columns: titles of the columns to show, whatever the width; default: those that fit.
        baseline: a block for the column of ratios.
        width: of the terminal; default: what it reports, or 80.
    """
    table = Table(rows, baseline, columns or ())
    room = width or shutil.get_terminal_size().columns
    cells: dict[str, list[str]] = {}  # of the columns that are shown
    for column in sorted(table.columns, key=lambda column: column.priority):
        texts = [column.title, *map(column.text, table.measured)]
        widest = max(map(len, texts))
        if columns or column.key == "block" or (column.priority and widest <= room):
            room -= widest + 2
            pad = str.rjust if column.numeric else str.ljust
            cells[column.key] = [pad(text, widest) for text in texts]
    shown = [cells[column.key] for column in table.columns if column.key in cells]
    head, *body = ("  ".join(line).rstrip() for line in zip(*shown, strict=True))
    lines, before = [head], ""
    for line, row in zip(body, table.measured, strict=True):
        if group(row) != before:
            lines.append(f"-- {row['layout']} {shapes(row, 'shape')}")
        lines.append(line)
        before = group(row)
    lines += [f"{row['block']}  not measured: {row['error']}" for row in table.failed]
    return "\n".join([*lines, table.heading])


def markdown(table: Table, command: str) -> str:
    """The table as Markdown, with the command that made it, and below it what failed."""
    failed = [f"{row['block']} has no row: {row['error']}" for row in table.failed]
    text = "\n\n".join([table.heading, table.formatted("pipe", table.columns), *failed])
    return f"`{command}`\n\n" + text.replace("&", "&amp;").replace("<", "&lt;") + "\n"


def latex(table: Table) -> str:
    """The main columns of the measured rows as a LaTeX table with the rules of booktabs."""
    shown = [column for column in table.columns if column.priority]
    return f"% {table.heading}\n{table.formatted('latex_booktabs', shown)}\n"


def table_csv(table: Table) -> str:
    """Every field of every row as JSON has it, and the ranks; nested values are written as JSON."""
    rows = [*table.measured, *table.failed]
    text = io.StringIO()
    fields = dict.fromkeys(key for row in rows for key in ("block", *row))
    writer = csv.DictWriter(text, list(fields), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        nested = {k: json.dumps(v) for k, v in row.items() if isinstance(v, (bool, dict, list))}
        writer.writerow({**row, **nested})
    return text.getvalue()


def require_titles(titles: Sequence[str]) -> None:
    """Raise ValueError if a title is not that of a column."""
    legal = [column.title for column in COLUMNS]
    for title in titles:
        if title not in legal:
            raise ValueError(f"--columns {title!r} must be of {', '.join(legal)}")


def _compare(same: Sequence[dict[str, Any]], baseline: str | None) -> None:
    """Add to the rows of one group their ranks and ratios."""
    for field, latency in RANKS.items():
        for row, rank in zip(same, ranks([r[latency] for r in same]), strict=True):
            row[field] = rank
    base = next((r["latency_forward_ms"] for r in same if r["block"] == baseline), None)
    for row in same:
        row["spread"] = row["latency_forward_p80_ms"] / row["latency_forward_ms"] - 1
        row["disturbed"] = row["latency_forward_disturbed"] / row["latency_forward_samples"]
        row["baseline_ratio"] = base and row["latency_forward_ms"] / base


def ranks(times: Sequence[float]) -> list[int]:
    """The rank of each time; a tie reaches a tenth above its fastest time."""
    found: dict[float, int] = {}
    first = 0.0
    for before, time in enumerate(sorted(times)):
        if not found or time > TIE * first:
            first, rank = time, before + 1
        found.setdefault(time, rank)
    return [found[time] for time in times]


def group(row: PlainRow) -> str:
    """Layout, shapes and conditions, which the rows that are ranked together share."""
    shared = [row[name] for name in ("layout", *CONDITIONS)]
    return json.dumps([*shared, list(row["shape"].values())])


def differing(rows: Sequence[PlainRow]) -> list[str]:
    """The conditions in which the rows differ."""
    return [name for name in CONDITIONS if len({row[name] for row in rows}) > 1]


def label(row: PlainRow, rows: Sequence[PlainRow]) -> str:
    """The row's name among `rows`: its block, with what it takes to tell it from the others."""
    name: str = row["block"]
    mates = [other for other in rows if other["block"] == name and other is not row]
    if any(mate["config"] != row["config"] for mate in mates):
        name += f" {keywords(row, 'config')}"
    if any(mate["shape"] != row["shape"] for mate in mates):
        name += f" {shapes(row, 'shape')}"
    return " ".join([name, *(f"{key}={row[key]}" for key in differing([row, *mates]))])


def _conditions(rows: Sequence[PlainRow], apart: Sequence[str]) -> list[str]:
    """The conditions that all rows share, and the rates of the machine, in words."""
    words = {key: f"{key} {rows[0][key]}" for key in CONDITIONS}
    words |= {key: f"{rows[0][key]}" for key in ("device", "device_name", "dtype", "mode")}
    words |= {key: key * rows[0][key] for key in ("autocast", "channels_last")}
    load = max(row["load"] for row in rows)
    loose = sum(not row["latency_forward_settled"] for row in rows)
    disturbed = sum(row["disturbed"] for row in rows) / len(rows)
    busy = (
        f"BUSY MACHINE: load up to {load:.1f} per processor, {disturbed:.0%} of the samples "
        f"disturbed, {loose} of {len(rows)} forward times uncertain (~)"
    )
    return [
        *(text for key, text in words.items() if text and key not in apart),
        f"copies at {_range(rows, 'roof_bandwidth')}B/s",
        f"matrix products at {_range(rows, 'roof_macs')}MAC/s",
        f"{_range(rows, 'roof_launch_us')}us to call an operator",
        *([busy] if load > BUSY else []),
    ]


def _range(rows: Sequence[PlainRow], key: str) -> str:
    values = [row[key] for row in rows]
    return " to ".join(dict.fromkeys(amount(end, " ") for end in (min(values), max(values))))
