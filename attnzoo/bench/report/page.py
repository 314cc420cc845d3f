"""The table as one HTML page that needs nothing else: no network, no other file."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from string import Template

from .columns import Column, PlainRow, columns
from .plots import INK, Picture
from .table import MEANING, conditions


def page(rows: Sequence[PlainRow], command: str, pictures: Sequence[Picture]) -> str:
    """The page of ranked rows: header, sortable table, figures and the columns' meanings.

    Whatever rows and command say is escaped; the page's policy lets no other script than its own
    run, and nothing be loaded.
    """
    shown, script = columns(rows), _file("page.js")
    good = [row for row in rows if "error" not in row]
    counted = f"{len(good)} measured, {len(rows) - len(good)} failed"
    where = [("command", command), *(conditions(good) if good else {}).items(), ("rows", counted)]
    return Template(_file("page.html")).substitute(
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        heading=html.escape(MEANING if good else "Nothing could be measured."),
        conditions=_definitions(where),
        head="\n".join(map(_head, shown)),
        body="\n".join(_row(row, shown) for row in rows),
        plots="\n".join(_figures(pictures)),
        meanings=_definitions([(column.title, column.means) for column in shown]),
        script=script,
    )


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _definitions(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"<dt>{html.escape(a)}</dt><dd>{html.escape(b)}</dd>" for a, b in pairs)


def _head(column: Column) -> str:
    name = ' class="name"' if column.title == "block" else ""
    kind = ' class="number"' if column.number else name
    return (
        f'<th scope="col" aria-sort="none"{kind}><button type="button" '
        f'title="{html.escape(column.means)}">{html.escape(column.title)}</button></th>'
    )


def _row(row: PlainRow, shown: Sequence[Column]) -> str:
    if "error" not in row:
        return f"<tr>{''.join(_cell(row, column) for column in shown)}</tr>"
    at = next(i for i, column in enumerate(shown) if column.title == "block")
    reason = html.escape(f"not measured: {row['error']}")
    return (
        f"<tr>{'<td></td>' * at}{_cell(row, shown[at])}"
        f'<td class="failed" colspan="{max(len(shown) - at - 1, 1)}">{reason}</td></tr>'
    )


def _cell(row: PlainRow, column: Column) -> str:
    name, scope = ("th", ' scope="row"') if column.title == "block" else ("td", "")
    kind = ' class="number"' if column.number else ""
    value = html.escape(json.dumps(column.value(row)))
    text = html.escape(column.text(row))
    return f'<{name}{scope}{kind} data-value="{value}">{text}</{name}>'


def _figures(pictures: Sequence[Picture]) -> Iterator[str]:
    if pictures:
        yield '<h2>Plots</h2>\n<div class="plots">'
        for picture in pictures:
            yield f"<figure>{_inline(picture, html.escape(picture.title))}</figure>"
        yield "</div>"


def _inline(picture: Picture, title: str) -> str:
    """The SVG as part of the page: ids of its own, no paper behind it, the page's ink."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace("#ffffff", "var(--page)")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
