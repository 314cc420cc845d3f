"""The documentation site: what is generated for every name, and the whole site (slow)."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import attnzoo
from attnzoo import reference

from catalogue import dataflow, equation, facts, gallery, generate, page

ROOT = Path(__file__).parents[2]
SECTIONS = (
    "Equation",
    "Data flow",
    "Arguments",
    "Cost",
    "Paper and code",
    "Verification",
    "Speed",
    "What works",
    "The authors' weights",
    "Citation",
)


@pytest.mark.every_block
def test_a_name_has_a_whole_page(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "verify", lambda name: [])  # has tests of its own
    text = page.page(name)
    assert re.findall(r"^## ([^{\n]*\w)", text, re.MULTILINE) == list(SECTIONS)
    assert f"\n---\n\n# {name}\n" in text
    assert "\n\n\n" not in text


@pytest.mark.every_block
def test_equations_are_well_formed(name: str) -> None:
    record = attnzoo.describe(name)
    for text in (record.math, record.cost):
        tree = ElementTree.fromstring(f"<div>{equation.render(text, list(record.defaults))}</div>")
        shown = "".join(tree.itertext())
        for word in re.findall(r"[a-z]{4,}", text):
            assert word in shown or word in ("sqrt", *equation.GREEK)


@pytest.mark.every_block
def test_a_diagram_leads_from_the_inputs_to_the_output(name: str) -> None:
    nodes = dataflow.flow(name)
    assert nodes[-1].kind == "output"
    assert nodes[-1].sources
    assert 3 <= len(nodes) <= 2 * dataflow.MAX_NODES
    assert all(source < i for i, node in enumerate(nodes) for source in node.sources)
    drawing = ElementTree.fromstring(dataflow.svg(name))
    _, _, width, height = map(float, drawing.attrib["viewBox"].split())
    for box in drawing.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, w, h = (float(box.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0
        assert x + w <= width
        assert y + h <= height


def test_a_diagram_says_what_the_block_does() -> None:
    labels = [node.label for node in dataflow.flow("se")]
    assert labels == [
        "x",
        "mean over axes 2, 3",
        "fc1: linear",
        "relu",
        "fc2: linear",
        "sigmoid",
        "\N{MULTIPLICATION SIGN}",
        "output",
    ]
    multiplied = dataflow.flow("se")[6]
    assert multiplied.sources == [0, 5]


@pytest.mark.every_block
def test_a_name_says_when_to_use_it(name: str) -> None:
    assert page.when(attnzoo.describe(name)).endswith(".")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("simam", "title = {{SimAM: A Simple, Parameter-Free Attention Module"),
        ("simam", "author = {Yang and Zhang and Li and Xie}"),
        ("agent", "author = {Han and others}"),
        ("mix_attention", "author = {Yeom and von Klitzing}"),
        ("trend_aware", "journal = {IEEE TKDE}"),
        ("cbam", "eprint = {1807.06521}"),
    ],
)
def test_citations(name: str, wanted: str) -> None:
    assert wanted in facts.bibtex(name)


def test_only_blocks_without_a_paper_have_no_citation() -> None:
    without = {name for name in attnzoo.names() if not facts.bibtex(name)}
    assert without == {"bilinear", "gate_exchange", "resize_conv", "self_gate"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("y = W1 x", "<math><mrow><mi>y</mi></mrow></math>"),
        ("c // reduction", "<mo>⌊</mo><mfrac><mrow><mi>c</mi></mrow>"),
        ("x over the N pixels", "over the"),
        ("a zero-padded map", "a zero-padded map"),
        ("the authors' code", "the authors' code"),
        ("K x K taps", "<mo>\N{MULTIPLICATION SIGN}</mo>"),
        ("2 x w", "<mi>x</mi>"),
        ("Q^T", "<msup><mi>Q</mi><mrow><mi>T</mi></mrow></msup>"),
        ("sum_i a_i", "<munder><mo>∑</mo><mi>i</mi></munder>"),
        ("sqrt(d)", "<msqrt><mrow><mi>d</mi></mrow></msqrt>"),
    ],
)
def test_formulas(text: str, wanted: str) -> None:
    assert wanted in equation.inline(text, ["reduction"])


def test_the_gallery_has_a_card_for_every_name() -> None:
    text = gallery.page(lambda name: "")
    assert re.findall(r'href="blocks/(\w+)\.html"', text) == attnzoo.names()
    card = gallery.card("cbam", lambda name: "")
    assert 'data-layout="image" data-family="spatial"' in card
    assert "8.56 k parameters · 93.2 k MACs" in card


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("insert.md", "[text](insert.md)"),
        ("../README.md", "[text](index.md)"),
        ("../benchmarks/results/cpu/learn.md", "[text](results/cpu-learn.md)"),
        ("../benchmarks/results", "[text](results/cpu.md)"),
        ("../attnzoo/registry.py", "text"),
    ],
)
def test_links_through_the_repository(target: str, wanted: str) -> None:
    assert generate.linked(f"[text]({target})", "a.md", {"a.md", "insert.md"}) == wanted


def test_comments_for_the_site_are_shown() -> None:
    shown = generate.linked("<!-- on the site: [a](gallery.md) -->", "index.md", {"gallery.md"})
    assert shown == "[a](gallery.md)"


class _Links(HTMLParser):
    """The identifiers of a page, what it links to, and what it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {str(values[key]) for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.targets.append(str(values["href"]))
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.loaded.append(str(values["href"]))
        elif tag in ("script", "img", "iframe") and values.get("src"):
            self.loaded.append(str(values["src"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, _Links]:
    """The built site: what stands on each page."""
    pytest.importorskip("material")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    pages = {}
    for path in folder.rglob("*.html"):
        pages[path] = _Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    return pages


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_site_has_no_broken_link(site: dict[Path, _Links]) -> None:
    assert len(site) > len(attnzoo.names()) + 10
    broken = []
    for path, links in site.items():
        if path.name == "404.html":
            continue
        for target in [*links.targets, *links.loaded]:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = there / "index.html" if there.is_dir() else there
            anchor = unquote(parts.fragment)
            known = not anchor or there not in site or anchor in site[there].ids
            if not (there.exists() and known):
                broken.append(f"{path.name}: {target}")
    assert broken == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_site_loads_nothing_from_elsewhere(site: dict[Path, _Links]) -> None:
    assert {t for links in site.values() for t in links.loaded if urlsplit(t).scheme} == set()
