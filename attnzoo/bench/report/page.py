"""The table as one HTML page that loads nothing: no network, no other file."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from importlib import resources
from string import Template

from .table import Table


def page(table: Table, command: str, pictures: Mapping[str, str]) -> str:
    """The page: a table to sort and filter, conditions, plots, and what the columns mean.

    Args:
        table: of any number of rows.
        command: that measured them.
        pictures: SVGs by their names.
    """
    rows = f"{len(table.measured)} measured, {len(table.failed)} failed"
    failed = {row["block"]: f"not measured: {row['error']}" for row in table.failed}
    here = resources.files(__package__)
    return Template((here / "page.html").read_text("utf-8")).substitute(
        meaning=escape(table.meaning),
        table=table.formatted("html", table.columns),
        failed=_definitions(failed),
        conditions=escape("; ".join([command, rows, *table.conditions])),
        plots="\n".join(_image(*drawn) for drawn in pictures.items()),
        columns=_definitions({column.title: column.means for column in table.columns}),
        script=(here / "page.js").read_text("utf-8"),
    )


def _definitions(pairs: Mapping[str, str]) -> str:
    return "\n".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in pairs.items())


def _image(name: str, svg: str) -> str:
    source = f"data:image/svg+xml;base64,{b64encode(svg.encode()).decode()}"
    return f'<img src="{source}" alt="{escape(name)}">'
