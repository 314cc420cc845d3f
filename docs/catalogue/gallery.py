"""The gallery: every name of the catalogue as a card, with search and filters."""

import html
from collections.abc import Callable
from typing import get_args

import attnzoo
from attnzoo.registry import Family, Layout

from . import facts
from .page import prose, sentence, when

HEAD = """\
---
hide: [navigation, toc]
---

# Gallery

All {count} names of the catalogue. Parameters and multiply-adds (MACs) of one sample are given at
one size for each layout: images with {image}; sequences with {sequence}; image series with
{image_series}. A star marks a block that only takes the size of its own example.

The pictures show what a block gives weight to, on a photograph or a series, or what an upsampler
makes of coarse features; nothing is trained. Other blocks show their data flow.

"""


def page(picture: Callable[[str], str]) -> str:
    """Markdown of the gallery; `picture(name)` gives the HTML of a card's picture."""
    names = attnzoo.names()
    sizes = {layout: facts.size_text(layout) for layout in ("image", "sequence", "image_series")}
    cards = "\n".join(card(name, picture) for name in names)
    return (
        HEAD.format(count=len(names), **sizes)
        + _controls()
        + f'<div class="cards" id="cards">\n{cards}\n</div>\n'
        + '<p id="none" hidden>No block matches.</p>\n'
    )


def _controls() -> str:
    entries = [attnzoo.describe(name) for name in attnzoo.names()]
    layouts = [layout for layout in get_args(Layout) if any(layout in e.layouts for e in entries)]
    families = [family for family in get_args(Family) if any(family == e.family for e in entries)]

    def select(key: str, values: list[str]) -> str:
        options = "".join(f'<option value="{v}">{v.replace("_", " ")}</option>' for v in values)
        choice = f'<select id="{key}"><option value="">all</option>{options}</select>'
        return f"<label>{key} {choice}</label>"

    return (
        '<div class="controls">\n<label>search <input id="text" type="search" '
        'placeholder="name, paper, purpose"></label>\n'
        f"{select('layout', layouts)}\n{select('family', families)}\n"
        '<output id="count" aria-live="polite"></output>\n</div>\n\n'
    )


def card(name: str, picture: Callable[[str], str]) -> str:
    """HTML of one card."""
    record = attnzoo.describe(name)
    common = facts.common(name)
    text = html.escape(f"{name} {record.title} {when(record)} {record.paper}".lower(), quote=True)
    star = "" if common.standard else "*"
    layouts = ", ".join(layout.replace("_", " ") for layout in record.layouts)
    return (
        f'<a class="card" href="blocks/{name}.html" data-layout="{" ".join(record.layouts)}" '
        f'data-family="{record.family}" data-text="{" ".join(text.split())}">\n'
        f'<span class="picture">{picture(name)}</span>\n'
        f'<span class="name">{name}</span>\n<span class="say">{prose(sentence(record))}</span>\n'
        f'<span class="meta">{layouts} · {record.family}<br>{facts.short(common.cost.params)} '
        f"parameters · {facts.short(common.cost.macs)} MACs{star}</span>\n</a>"
    )
