"""Facts about one block that its docstring does not state: costs, speed, verification, citation."""

import functools
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import attnzoo
from attnzoo.bench.job import CHANNELS, SIZES, Settings, example_job
from attnzoo.registry import Cost, InputSize, find
from attnzoo.testing.inputs import make_inputs
from attnzoo.validation.tensors import tensors

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


class Common(NamedTuple):
    """A block at the size that the benchmark uses for its whole layout."""

    cost: Cost
    shapes: str  # of the inputs
    standard: bool  # False if the block only takes the size of its own example


@functools.cache
def common(name: str) -> Common:
    """Parameters and multiply-adds at the benchmark's size."""
    entry = find(name)
    job = example_job(name, {}, Settings())
    layout = job.config.get("layout", entry.layouts[0])
    inputs = make_inputs(entry, dict(job.config), job.at, device="meta")
    shapes = ", ".join("×".join(map(str, t.shape)) for t in tensors(inputs))
    same_width = job.config.get("c") == CHANNELS.get(layout)
    cost = entry.closed_form(job.at, **job.config)
    return Common(cost, shapes, job.at == SIZES.get(layout) and same_width)


@functools.cache
def measured() -> dict[str, tuple[dict[str, Any], str]]:
    """The measured rows by block, each with the folder of its result file; the first counts."""
    rows: dict[str, tuple[dict[str, Any], str]] = {}
    for file in sorted(RESULTS.glob("*/bench.json")):
        for row in json.loads(file.read_text(encoding="utf-8")):
            if row.get("latency_forward_ms"):
                rows.setdefault(row["block"], (row, file.parent.name))
    return rows


def argument_meanings(cls: type) -> dict[str, str]:
    """What each argument means, from the `Args:` section of the class's docstring."""
    doc = inspect.getdoc(cls) or ""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL)
    if section is None:
        return {}
    items = re.split(r"^ {4}(?=\S)", section[1], flags=re.MULTILINE)[1:]
    meanings = {}
    for item in items:
        keys, _, text = item.partition(":")
        for key in keys.split(","):
            meanings[key.strip()] = " ".join(text.split())
    return meanings


def short(number: float | None) -> str:
    """`3210000` as `3.21 M`."""
    if number is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


class Citation(NamedTuple):
    """A paper, as far as a docstring states it."""

    title: str
    authors: tuple[str, ...]  # surnames
    others: bool  # whether there are more authors
    venue: str
    year: str
    arxiv: str

    def bibtex(self, key: str) -> str:
        """The entry of a BibTeX file."""
        names = " and ".join([*self.authors, *(["others"] if self.others else [])])
        journal = any(word in self.venue for word in ("IEEE T", "TPAMI", "Transactions"))
        kind = "article" if journal else "inproceedings" if self.venue else "misc"
        fields: Mapping[str, str] = {
            "title": f"{{{self.title}}}",
            "author": names,
            "journal" if journal else "booktitle": self.venue,
            "year": self.year,
            "eprint": self.arxiv,
            "archiveprefix": "arXiv" if self.arxiv else "",
        }
        lines = [f"  {field} = {{{value}}}," for field, value in fields.items() if value]
        return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def citation(paper: str) -> Citation | None:
    """The citation in a docstring's `Paper:` section, or None if it names no paper of its own.

    The section reads "title, surnames, venue year, arXiv number"; titles may contain commas.
    """
    text = " ".join(paper.split()).rstrip(".")
    if not text or text.startswith(("none", "a baseline")):
        return None
    parts = [part.strip() for part in text.split(", ")]
    years = [i for i, part in enumerate(parts) if re.search(r"\b(19|20)\d\d\b", part) and i]
    if not years:
        return None
    at = years[0]
    start = at
    while start > 1 and re.fullmatch(r"(?:von |de )?[A-Z][\w'-]+(?: et al\.)?", parts[start - 1]):
        start -= 1
    surnames = tuple(re.sub(r" et al\.$", "", part) for part in parts[start:at])
    others = any(part.endswith("et al.") for part in parts[start:at])
    venue = re.match(r"(?:.*?: )?(?P<venue>.*?) ?\b(?P<year>(?:19|20)\d\d)\b", parts[at])
    arxiv = _ARXIV.search(text)
    return Citation(
        title=re.sub(r" \([^()]*\)$", "", ", ".join(parts[:start])),
        authors=surnames,
        others=others,
        venue=venue["venue"] if venue else "",
        year=venue["year"] if venue else "",
        arxiv=arxiv[1] if arxiv else "",
    )


def bibtex(name: str) -> str:
    """BibTeX of a block's paper, or an empty string."""
    found = citation(attnzoo.describe(name).paper)
    if found is None:
        return ""
    first = found.authors[0].split()[-1].lower() if found.authors else name
    return found.bibtex(f"{first}{found.year}{name.replace('_', '')}")


def example_line(name: str) -> str:
    """The line that builds the block's example."""
    config = "".join(f", {key}={value!r}" for key, value in find(name).example.items())
    return f'attnzoo.build("{name}"{config})'


def plain_line(name: str) -> str:
    """The shortest line that builds a block: what has no default, as in the example."""
    entry = find(name)
    required = [
        f"{key}={entry.example[key]!r}"
        for key, parameter in entry.signature.parameters.items()
        if parameter.default is parameter.empty
    ]
    return f'attnzoo.build("{name}", {", ".join(required)})'


def example_shapes(name: str) -> dict[str, str]:
    """The shapes of the example's inputs, by argument."""
    entry = find(name)
    inputs = make_inputs(entry, dict(entry.example), entry.input_size, device="meta")
    return {
        key: ", ".join(str(tuple(t.shape)) for t in tensors(value)) for key, value in inputs.items()
    }


def size_text(layout: str) -> str:
    """The benchmark's common size of a layout, in words."""
    size: InputSize = SIZES[layout]
    c = CHANNELS[layout]
    return {
        "image": f"{c} channels, {size.height} × {size.width}",
        "sequence": f"{c} channels, {size.steps} steps",
        "image_series": f"{c} channels, {size.steps} dates of {size.height} × {size.width}",
    }[layout]
