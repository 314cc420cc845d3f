"""What a run leaves to read: tables, a page and plots, all made from plain rows."""

import json
from collections.abc import Sequence
from pathlib import Path

from .. import store
from .columns import PlainRow
from .growth import growth_lines as growth_lines
from .page import page
from .plots import pictures
from .rank import ranked
from .table import Written, plain
from .table import latex as latex
from .table import markdown as markdown
from .table import require_titles as require_titles
from .table import table_csv as table_csv
from .table import terminal as terminal


def write(
    rows: Sequence[Written | PlainRow], folder: Path, command: str, baseline: str | None = None
) -> tuple[Path, ...]:
    """Write `bench.json` (the rows as one list), `.md`, `.tex`, `.csv`, `.html` and `plots/`.

    Rows may be records or plain rows read back from a result file. Returns the paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = ranked(plain(rows), baseline)
    drawn = pictures(found, folder / "plots")
    texts = {
        "bench.json": json.dumps(plain(rows), indent=1) + "\n",
        "bench.md": markdown(rows, command, baseline),
        "bench.tex": latex(rows, baseline),
        "bench.csv": table_csv(rows, baseline),
        "bench.html": page(found, command, drawn),
    }
    for name, text in texts.items():
        store.replace(folder / name, text.encode())
    return (*(folder / name for name in texts), *([folder / "plots"] if drawn else []))
