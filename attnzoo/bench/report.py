"""Rows as a terminal table, Markdown and JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from .run import Failure, Row
from .timing import Latency

COLUMNS = (
    "block",
    "layout",
    "shape",
    "params",
    "MACs",
    "min bytes",
    "forward ms",
    "fwd+bwd ms",
    "saved bytes",
)
TEXT_COLUMNS = 3  # the rest are numbers, set to the right


def heading(rows: Sequence[Row | Failure]) -> str:
    """What the numbers mean and where they were taken, in words."""
    first = next((row for row in rows if isinstance(row, Row)), None)
    if first is None:
        return "Nothing could be measured."
    return (
        f"{first.device} ({first.device_name}), {first.dtype}, {first.threads} threads, "
        f"torch {first.torch}. One MAC is one multiply-add of a convolution, matrix product or "
        "attention, of one sample's forward pass; min bytes is what any implementation must move "
        "in a forward pass over the batch; saved bytes is what autograd keeps for the backward "
        "pass; latency is the median over the batch (20th to 80th percentile)."
    )


def cells(row: Row | Failure) -> list[str]:
    """A row's columns as text; a failure has none, its reason stands below the table."""
    if isinstance(row, Failure):
        return [row.block, "not measured", *[""] * (len(COLUMNS) - 2)]
    return [
        row.block,
        row.layout,
        " + ".join(_shape(value) for value in row.shape.values()),
        f"{row.params:,}",
        f"{row.macs:,}",
        _si(row.bytes_forward),
        _latency(row.latency_forward),
        _latency(row.latency_training),
        _si(row.memory_saved_bytes),
    ]


def terminal(rows: Sequence[Row | Failure]) -> Table:
    """The table as rich prints it."""
    table = Table(caption=heading(rows), caption_justify="left")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i < TEXT_COLUMNS else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*cells(row))
    return table


def markdown(rows: Sequence[Row | Failure], command: str) -> str:
    """The table as Markdown, with the command that made it."""
    lines = [
        f"`{command}`",
        "",
        heading(rows),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join("---" if i < TEXT_COLUMNS else "---:" for i in range(len(COLUMNS))) + "|",
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        *(f"\n{row.block} has no row: {row.error}" for row in rows if isinstance(row, Failure)),
    ]
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row | Failure], folder: Path, command: str) -> tuple[Path, Path]:
    """Write `bench.json`, a list of rows, and `bench.md` into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / "bench.json", folder / "bench.md"
    data.write_text(json.dumps([row.to_json() for row in rows], indent=1) + "\n")
    text.write_text(markdown(rows, command))
    return data, text


def _shape(value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[" + ", ".join(_shape(item) for item in value) + "]"
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _latency(latency: Latency) -> str:
    return f"{latency.median:.3g} ({latency.p20:.3g} to {latency.p80:.3g})"


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"
