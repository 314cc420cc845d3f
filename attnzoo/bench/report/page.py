"""The table as one HTML page that needs nothing else: no network, no other file."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template

from ..columns import Column, PlainRow
from .plots import INK, Picture
from .rows import MEANING, conditions, filled


def page(rows: Sequence[PlainRow], command: str, pictures: Sequence[Picture]) -> str:
    """The page of ranked rows: header, sortable table, figures and the columns' meanings.

    Whatever rows and command say is escaped; the page's policy lets no other script than its own
    run, and nothing be loaded.
    """
    shown, script = filled(rows), _file("page.js")
    failed = sum("error" in row for row in rows)
    counted = f"{len(rows) - failed} measured, {failed} failed"
    plots = "\n".join(f"<figure>{_inline(picture)}</figure>" for picture in pictures)
    return Template(_file("page.html")).substitute(
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        heading=html.escape(MEANING if failed < len(rows) else "Nothing could be measured."),
        conditions=_definitions({"command": command, **conditions(rows), "rows": counted}),
        head="\n".join(map(_head, shown)),
        body="\n".join(_row(row, shown) for row in rows),
        plots=plots and f'<h2>Plots</h2>\n<div class="plots">{plots}</div>',
        meanings=_definitions({column.title: column.means for column in shown}),
        script=script,
    )


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _definitions(pairs: Mapping[str, str]) -> str:
    return "\n".join(
        f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in pairs.items()
    )


def _head(column: Column) -> str:
    name = ' class="name"' if column.key == "block" else ""
    kind = ' class="number"' if column.numeric else name
    return (
        f'<th scope="col" aria-sort="none"{kind}><button type="button" '
        f'title="{html.escape(column.means)}">{html.escape(column.title)}</button></th>'
    )


def _row(row: PlainRow, shown: Sequence[Column]) -> str:
    if "error" not in row:
        return f"<tr>{''.join(_cell(row, column) for column in shown)}</tr>"
    reason = html.escape(f"not measured: {row['error']}")
    rest = f'<td class="failed" colspan="{max(len(shown) - 1, 1)}">{reason}</td>'
    return f"<tr>{_cell(row, shown[0])}{rest}</tr>"


def _cell(row: PlainRow, column: Column) -> str:
    name, scope = ("th", ' scope="row"') if column.key == "block" else ("td", "")
    kind = ' class="number"' if column.numeric else ""
    text = column.text(row)
    value = html.escape(json.dumps(row.get(column.key) if column.numeric else text))
    return f'<{name}{scope}{kind} data-value="{value}">{html.escape(text)}</{name}>'


def _inline(picture: Picture) -> str:
    """The SVG as part of the page: ids of its own, no paper behind it, the page's ink."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace("#ffffff", "var(--page)")
    title = html.escape(picture.title)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
