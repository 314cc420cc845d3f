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
    percent,
    ratio,
    row_columns,
    shapes,
    word,
)

TIE = 1.1  # minimum times of two runs agree to a tenth
BUSY = 1.5  # load average per processor
VERSIONS = ("torch", "python", "attnzoo")
CONDITIONS = (
    *("device", "device_name", "dtype", "autocast", "channels_last", "mode", "threads"),
    *VERSIONS,
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

    Each measured row gets `rank`, `rank_training`, `spread`, `disturbed` and, if its group has the
    baseline block, `baseline_ratio`.

    Args:
        rows: of any number of runs.
        baseline: a block's name.
        titles: of the columns; default: all that are not empty.
    """

    def __init__(
        self, rows: Iterable[Result], baseline: str | None = None, titles: Sequence[str] = ()
    ) -> None:
        require_titles(titles)
        plain = [row.to_json() for row in rows]
        self.measured = [row for row in plain if "error" not in row]
        self.failed = [row for row in plain if "error" in row]
        self.measured.sort(key=lambda row: (group(row), row["latency_forward_ms"]))
        for _, same in groupby(self.measured, key=group):
            _compare(list(same), baseline)
        self.columns = _useful(self.measured)
        if titles:
            named = {column.title: column for column in self.columns}
            self.columns = [named[t] for t in dict.fromkeys(["block", *titles]) if t in named]
        self.conditions = conditions(self.measured)

        self.meaning = MEANING if self.measured else "Nothing could be measured."
        self.heading = ". ".join(filter(None, [", ".join(self.conditions.values()), self.meaning]))

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
    shown = table.columns
    if not columns:
        shown = _fitting(table, width or shutil.get_terminal_size().columns)
    aligned = [_aligned(table, column) for column in shown]
    head, *body = ("  ".join(cells).rstrip() for cells in zip(*aligned, strict=True))
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
    found = [0] * len(times)
    first, rank = 0.0, 0
    for before, i in enumerate(sorted(range(len(times)), key=lambda i: times[i])):
        if rank == 0 or times[i] > TIE * first:
            first, rank = times[i], before + 1
        found[i] = rank
    return found


def group(row: PlainRow) -> str:
    """Layout, shapes and conditions, which the rows that are ranked together share."""
    names = ("layout", *CONDITIONS)
    return json.dumps([*(row[name] for name in names), list(row["shape"].values())])


def differing(rows: Sequence[PlainRow]) -> list[str]:
    """The conditions in which the rows differ."""
    return [name for name in CONDITIONS if len({row[name] for row in rows}) > 1]


def label(row: PlainRow, rows: Sequence[PlainRow]) -> str:
    """The row's name among `rows`: its block, and in what it differs from the others."""
    mates = [other for other in rows if other["block"] == row["block"]]
    words = [f"{key}={row.get(key)}" for key in differing(rows)]
    for key, value in row["config"].items():
        if any(mate["config"].get(key) != value for mate in mates):
            words.append(f"{key}={value}")
    if any(mate["config"] == row["config"] and mate["shape"] != row["shape"] for mate in mates):
        words.append(shapes(row, "shape"))
    return " ".join([row["block"], *words])


def conditions(rows: Sequence[PlainRow]) -> dict[str, str]:
    """The conditions that all rows share, in words."""
    if not rows:
        return {}
    first, apart = rows[0], differing(rows)
    words = {
        "device": f"{first['device']} ({first['device_name']})",
        "dtype": first["dtype"],
        "autocast": "autocast" * first["autocast"],
        "channels_last": "channels_last" * first["channels_last"],
        "mode": first["mode"],
        "threads": f"{first['threads']} thread{'s' * (first['threads'] != 1)}",
        **{key: f"{key} {first[key]}" for key in VERSIONS},
        "memory bandwidth": f"copies at {_range(rows, 'roof_bandwidth')}B/s",
        "matrix rate": f"matrix products at {_range(rows, 'roof_macs')}MAC/s",
        "launch overhead": f"{_range(rows, 'roof_launch_us')}us to call an operator",
        "load": _busy(rows),
    }
    return {key: text for key, text in words.items() if text and key not in apart}


def _range(rows: Sequence[PlainRow], key: str) -> str:
    values = [row[key] for row in rows]
    return " to ".join(dict.fromkeys(amount(end, " ") for end in (min(values), max(values))))


def _busy(rows: Sequence[PlainRow]) -> str:
    """A warning if the machine was busy, else an empty string."""
    load = max(row["load"] for row in rows)
    loose = sum(not row["latency_forward_settled"] for row in rows)
    disturbed = sum(row["disturbed"] for row in rows) / len(rows)
    if load <= BUSY:
        return ""
    return (
        f"BUSY MACHINE: load up to {load:.1f} per processor, {disturbed:.0%} of the samples "
        f"disturbed, {loose} of {len(rows)} forward times uncertain (~)"
    )


def _useful(rows: Sequence[PlainRow]) -> list[Column]:
    """The columns that are not empty, and one for each condition in which the rows differ."""
    apart = [Column(key.replace("_", " "), "condition", word, 2, key) for key in differing(rows)]
    found = [c for c in COLUMNS[1:] if any(row.get(c.key) is not None for row in rows)]
    return [COLUMNS[0], *apart, *found]


def _fitting(table: Table, room: int) -> list[Column]:
    """As many columns as there is room for, in order of priority."""
    chosen: list[Column] = []
    for column in sorted((c for c in table.columns if c.priority), key=lambda c: c.priority):
        needed = len(_aligned(table, column)[0]) + 2 * bool(chosen)
        if needed <= room or not chosen:
            chosen.append(column)
            room -= needed
    return [column for column in table.columns if column in chosen]


def _aligned(table: Table, column: Column) -> list[str]:
    """The title and the cells of a column, all of the same length."""
    cells = [column.title, *map(column.text, table.measured)]
    width = max(map(len, cells))
    return [cell.rjust(width) if column.numeric else cell.ljust(width) for cell in cells]
