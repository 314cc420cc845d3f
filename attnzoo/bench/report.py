"""Rows as a terminal table, Markdown and JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from .run import Row
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


def heading(rows: Sequence[Row]) -> str:
    """What the numbers mean and where they were taken, in words."""
    first = rows[0]
    return (
        f"{first.device} ({first.device_name}), {first.dtype}, {first.threads} threads, "
        f"torch {first.torch}. One MAC is one multiply-add of a convolution, matrix product or "
        "attention, of one sample's forward pass; min bytes is what any implementation must move "
        "in a forward pass over the batch; saved bytes is what autograd keeps for the backward "
        "pass; latency is the median over the batch (20th to 80th percentile)."
    )


def cells(row: Row) -> list[str]:
    """A row's columns as text."""
    return [
        row.block,
        row.layout,
        " + ".join(_shape(value) for value in row.shape.values()),
        f"{row.params:,}",
        f"{row.macs:,}",
        _si(row.bytes_forward),
        _latency(row.forward),
        _latency(row.training),
        _si(row.saved_bytes),
    ]


def terminal(rows: Sequence[Row]) -> Table:
    """The table as rich prints it."""
    table = Table(caption=heading(rows), caption_justify="left")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if i < 3 else "right", no_wrap=i == 0)
    for row in rows:
        table.add_row(*cells(row))
    return table


def markdown(rows: Sequence[Row], command: str) -> str:
    """The table as Markdown, with the command that made it."""
    lines = [
        f"`{command}`",
        "",
        heading(rows),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join("---" if i < 3 else "---:" for i in range(len(COLUMNS))) + "|",
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row], folder: Path, command: str) -> tuple[Path, Path]:
    """Write `bench.json` and `bench.md` into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / "bench.json", folder / "bench.md"
    content = {"command": command, "rows": [row.to_json() for row in rows]}
    data.write_text(json.dumps(content, indent=1) + "\n")
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
