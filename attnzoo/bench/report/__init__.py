"""Tables, a page and plots of a run, all made from its rows."""

import json
from collections.abc import Sequence
from pathlib import Path

from .. import store
from ..row import Result
from .page import page
from .plots import pictures
from .table import Table, latex, markdown, table_csv
from .table import require_titles as require_titles
from .table import terminal as terminal


def write(
    rows: Sequence[Result], folder: Path, command: str, baseline: str | None = None
) -> tuple[Path, ...]:
    """Write `bench.json` (the rows as one list), `.md`, `.tex`, `.csv`, `.html` and `plots/`.

    `store.load` returns the rows of an earlier run. Returns the paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = Table(rows, baseline)
    drawn = pictures(table.measured, folder / "plots")
    texts = {
        "bench.json": json.dumps([row.to_json() for row in rows], indent=1) + "\n",
        "bench.md": markdown(table, command),
        "bench.tex": latex(table),
        "bench.csv": table_csv(table),
        "bench.html": page(table, command, drawn),
    }
    for name, text in texts.items():
        store.replace(folder / name, text.encode())
    return (*(folder / name for name in texts), *([folder / "plots"] if drawn else []))
