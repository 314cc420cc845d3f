"""What a run leaves to read: tables, a page and plots, all made from its rows."""

import json
from collections.abc import Sequence
from pathlib import Path

from .. import store
from ..row import Result
from .growth import growth_lines as growth_lines
from .page import page
from .plots import pictures
from .rows import ranked
from .table import latex as latex
from .table import markdown as markdown
from .table import require_titles as require_titles
from .table import table_csv as table_csv
from .table import terminal as terminal


def write(
    rows: Sequence[Result], folder: Path, command: str, baseline: str | None = None
) -> tuple[Path, ...]:
    """Write `bench.json` (the rows as one list), `.md`, `.tex`, `.csv`, `.html` and `plots/`.

    The rows of an earlier run are those of `store.load`. Returns the paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = ranked(rows, baseline)
    drawn = pictures(found, folder / "plots")
    texts = {
        "bench.json": json.dumps([row.to_json() for row in rows], indent=1) + "\n",
        "bench.md": markdown(rows, command, baseline),
        "bench.tex": latex(rows, baseline),
        "bench.csv": table_csv(rows, baseline),
        "bench.html": page(found, command, drawn),
    }
    for name, text in texts.items():
        store.replace(folder / name, text.encode())
    return (*(folder / name for name in texts), *([folder / "plots"] if drawn else []))
