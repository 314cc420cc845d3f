"""The tables, the page and the plots, from rows made up here."""

import base64
import csv
import hashlib
import html.parser
import io
import json
import re
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import attnzoo
from attnzoo.bench import columns, labels, plots, rank, report, scaling

HOSTILE = "<script>alert('x')</script>"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def made(block: str = "se", at: float = 1.0, **changed: Any) -> dict[str, Any]:
    """A row as `bench.json` has it; `at` is its forward latency in ms."""
    latencies = {
        f"latency_{name}{end}": scale * at * factor
        for name, factor in (("forward", 1.0), ("train_forward", 1.5), ("training", 3.0))
        for end, scale in (("_ms", 1.0), ("_p20_ms", 0.95), ("_p80_ms", 1.06))
    }
    return {
        "schema": 1,
        "block": block,
        "layout": "image",
        "config": {"c": 64, "reduction": 16},
        "shape": {"x": [2, 64, 14, 14]},
        "device": "cpu",
        "device_name": "a processor",
        "dtype": "float32",
        "autocast": False,
        "channels_last": False,
        "mode": "eager",
        "threads": 2,
        "torch": "2.15.0",
        "python": "3.12.1",
        "attnzoo": "0.1.0",
        "params": 512,
        "macs": 1234567,
        "macs_executed": 1234567,
        "elementwise": 4321,
        "bytes_forward": 200_000,
        "bytes_training": 400_000,
        **latencies,
        "compile_seconds": None,
        "memory_saved_bytes": 1000,
        "memory_peak_bytes": None,
        "roof_bandwidth": 1e10,
        "roof_macs": 1e11,
        "roof_launch_us": 2.0,
        "roof_forward": "launch",
        "roof_training": "bandwidth",
        "roof_forward_fraction": None,
        "roof_training_fraction": 0.25,
        **changed,
    }


def failed(block: str = "cbam", error: str = "ValueError: why") -> dict[str, Any]:
    return {"schema": 1, "block": block, "error": error}


def catalogue() -> list[dict[str, Any]]:
    """A row for each block of the catalogue, many of them close together."""
    return [
        made(
            name,
            0.4 * 1.13 ** (7 * i % 11),
            layout=attnzoo.describe(name).layout,
            macs=10 ** (3 + i % 5),
            macs_executed=10 ** (3 + i % 5),
            bytes_forward=200_000 + 7_000 * (i % 6),
        )
        for i, name in enumerate(attnzoo.names())
    ]


spans = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 6)).map(lambda t: (t[0], t[0] + t[1])), max_size=12
)


@given(spans)
def test_overlapping_blocks_share_a_rank_and_only_gaps_part_them(
    found: list[tuple[int, int]],
) -> None:
    places = rank.ranks([(float(a), float(b)) for a, b in found])
    for (a, place), (b, other) in combinations(zip(found, places, strict=True), 2):
        if a[0] <= b[1] and b[0] <= a[1]:
            assert place == other
        if place < other:
            assert a[1] < b[0]
    for place in set(places):
        assert place == 1 + sum(other < place for other in places)
    for place in sorted(set(places))[1:]:  # between two ranks lies a gap that nothing covers
        end = max(span[1] for span, p in zip(found, places, strict=True) if p < place)
        assert end < min(span[0] for span, p in zip(found, places, strict=True) if p >= place)


def test_a_tie_runs_along_a_chain() -> None:
    assert rank.ranks([(5, 6), (1, 2), (1.5, 3), (2.5, 4)]) == [4, 1, 1, 1]


def test_rows_are_ranked_within_their_task() -> None:
    rows = [
        made("se", 2.0),
        failed(),
        made("eca", 1.0),
        made("gc", 9.0, dtype="bfloat16"),
        made("bam", 1.99),
    ]
    found = rank.ranked(rows)
    assert [(r["block"], r.get("rank")) for r in found] == [
        ("gc", 1),
        ("eca", 1),
        ("bam", 2),
        ("se", 2),
        ("cbam", None),
    ]
    assert "rank" not in rows[0]


def test_terminal_and_markdown_say_rank_roof_and_failures() -> None:
    rows = [made(), made("eca", 3.0, roof_forward="compute", roof_forward_fraction=0.125), failed()]
    text = io.StringIO()
    Console(file=text, width=200).print(report.terminal(rows))
    assert "launch overhead" in text.getvalue()
    assert "compute 12 %" in text.getvalue()
    assert "not measured" in text.getvalue()
    lines = report.markdown(rows, "attnzoo bench").splitlines()
    assert lines[0] == "`attnzoo bench`"
    assert "One MAC is one multiply-add" in lines[2]
    assert "a processor" in lines[2]
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1
    assert (
        "| 2 | eca | image | 2x64x14x14 | 512 | 1,234,567 | 200k | 3 (2.85 to 3.18) |"
        in "\n".join(lines)
    )
    assert lines[-1] == "cbam has no row: ValueError: why"


def test_what_differs_between_rows_becomes_a_column() -> None:
    rows = [made(), made(mode="compiled", compile_seconds=3.2), made(config={"c": 32})]
    titles = [column.title for column in columns.columns(rows)]
    assert "mode" in titles
    assert "config" in titles
    assert "compile s" in titles
    assert "dtype" not in titles
    assert "peak bytes" not in titles
    assert "eager" not in report.heading(rows)
    assert "float32" in report.heading(rows)
    assert "copies at 10 GB/s, matrix products at 100 GMAC/s, 2 us" in report.heading(rows)
    rows[1]["roof_bandwidth"] = 6.6e10
    assert "copies at 10 G to 66 GB/s" in report.heading(rows)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    rows = [made(HOSTILE, shape={HOSTILE: [2, 64, 14, 14]}), failed(HOSTILE, f"a | b\n{HOSTILE}")]
    rows.append(made("$\\frac{$", config={"c": HOSTILE}, device_name=HOSTILE, at=7))
    report.write(rows, tmp_path, f"attnzoo bench {HOSTILE}")
    assert "<script>" not in (tmp_path / "bench.md").read_text()[len(HOSTILE) + 20 :]
    assert (tmp_path / "bench.html").read_text().count("<script>") == 1
    Console(file=io.StringIO()).print(report.terminal([failed("[red]x[/blue]", "[/]")]))


def test_csv_holds_every_field_exactly() -> None:
    rows = [made(at=1 / 3), failed(error='"quoted", and\nbroken')]
    found = list(csv.DictReader(io.StringIO(report.table_csv(rows))))
    assert float(found[0]["latency_forward_ms"]) == rows[0]["latency_forward_ms"]
    assert json.loads(found[0]["config"]) == rows[0]["config"]
    assert found[0]["rank"] == "1"
    assert found[1]["error"] == rows[1]["error"]
    assert set(found[0]) == {*rows[0], "error", "rank", "rank_training"}


class Page(html.parser.HTMLParser):
    """What a browser would find in a page, as far as the tests ask."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[tuple[object, str]]] = []
        self.script = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append((json.loads(found.get("data-value") or "null"), ""))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "button"):
            value, text = self.cells[-1][-1]
            self.cells[-1][-1] = (value, text + data)
        if self.open and self.open[-1] == "script":
            self.script += data

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def of(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (found for name, found in self.tags if name == tag)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of every block, with failures and a hostile name."""
    folder = tmp_path_factory.mktemp("report")
    report.write([*catalogue(), failed(), failed(HOSTILE)], folder, "attnzoo bench --out <here>")
    return folder


def test_every_kind_of_report_is_written(written: Path) -> None:
    names = {"bench.md", "bench.csv", "bench.html", "plots"}
    assert {path.name for path in written.iterdir()} == names
    drawn = {path.name for path in (written / "plots").iterdir()}
    kinds = ("latency-bytes", "latency-macs", "roofline")
    assert drawn == {f"{kind}.{end}" for kind in kinds for end in ("svg", "png")}


def test_the_page_needs_nothing_else(written: Path) -> None:
    page = Page((written / "bench.html").read_text())
    for tag, found in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base"), tag
        for key in ("src", "href", "xlink:href", "action"):
            assert (found.get(key) or "#").startswith("#"), (tag, found)
    assert len(list(page.of("script"))) == 1
    (policy,) = (m["content"] for m in page.of("meta") if "http-equiv" in m)
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))


def test_the_page_has_every_row_with_its_true_values(written: Path) -> None:
    page = Page((written / "bench.html").read_text())
    head, *body = page.cells
    rows = rank.ranked([*catalogue(), failed(), failed(HOSTILE)])
    assert [cells[1][0] for cells in body] == [row["block"] for row in rows]
    titles = [text for _, text in head]
    at = titles.index("forward ms")
    for row, cells in zip(rows, body, strict=True):
        if "error" in row:
            assert cells[2][1] == f"not measured: {row['error']}"
        else:
            assert len(cells) == len(head)
            assert cells[at][0] == row["latency_forward_ms"]


def test_the_page_is_accessible(written: Path) -> None:
    page = Page((written / "bench.html").read_text())
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")] == ["h1", *["h2"] * 4]
    assert all(h.get("aria-sort") == "none" for h in page.of("th") if h.get("scope") == "col")
    assert all(h.get("scope") in ("row", "col") for h in page.of("th"))
    assert len(list(page.of("button"))) == len(page.cells[0])
    assert all(found.get("aria-label") for found in page.of("svg"))
    assert next(page.of("html"))["lang"] == "en"
    text = (written / "bench.html").read_text()
    for said in ("One MAC is one multiply-add", "a processor", "2 threads", "torch 2.15.0"):
        assert said in text
    assert "attnzoo bench --out &lt;here&gt;" in text


def test_plots_are_the_same_twice_whatever_matplotlib_is_set_to(
    written: Path, tmp_path: Path
) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.grid": False}):
        plots.pictures(rank.ranked(catalogue()), tmp_path)
    for path in (written / "plots").glob("*.svg"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert not re.search(r"<dc:date>", path.read_text())


def test_labels_cover_neither_each_other_nor_points(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    free = labels._free

    def spy(at: Any, width: Any, height: Any, taken: Any, inside: Any) -> Any:
        far, box = free(at, width, height, taken, inside)
        seen.append(box)
        assert labels._within(box, inside)
        assert not any(labels._overlap(box, other) for other in taken)
        return far, box

    monkeypatch.setattr(labels, "_free", spy)
    plots._against_bytes(catalogue())
    assert len(seen) == len(attnzoo.names())
    assert not any(labels._overlap(a, b) for a, b in combinations(seen, 2))


def test_a_sweep_is_found_and_drawn(tmp_path: Path) -> None:
    rows = [
        made(name, at * c**power / 32, config={"c": c, "reduction": 16}, shape={"x": [2, c, 9, 9]})
        for name, at, power in (("se", 1.0, 1), ("cbam", 3.0, 2))
        for c in (128, 32, 64)
    ]
    found = scaling.lines(rows)
    assert [(line.key, line.values) for line in found] == [("c", (32.0, 64.0, 128.0))] * 2
    exponents = [
        scaling.growth(line.values, [r["latency_forward_ms"] for r in line.rows]) for line in found
    ]
    assert exponents == pytest.approx([1, 2])
    drawn = {picture.name: picture for picture in plots.pictures(rows, tmp_path)}
    assert drawn["scaling-c"].title == "Scaling with c"
    assert (tmp_path / "scaling-c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("layout", "shapes", "key"),
    [
        ("image", ([2, 8, 7, 7], [2, 8, 14, 14]), "size"),
        ("sequence", ([2, 24, 8], [2, 48, 8]), "T"),
        ("image_series", ([2, 6, 8, 7, 7], [2, 12, 8, 7, 7]), "T"),
        ("features", ([[1, 8, 7, 7], [1, 8, 3, 3]], [[4, 8, 7, 7], [4, 8, 3, 3]]), "batch"),
    ],
)
def test_sweeps_of_the_input_are_told_apart(layout: str, shapes: Any, key: str) -> None:
    rows = [made(layout=layout, shape={"x": shape}) for shape in shapes]
    assert [line.key for line in scaling.lines(rows)] == [key]
    assert not scaling.lines([rows[0], {**rows[1], "dtype": "bfloat16"}])


def test_nothing_measured_is_a_report_too(tmp_path: Path) -> None:
    report.write([failed()], tmp_path, "attnzoo bench cbam")
    assert "Nothing could be measured" in (tmp_path / "bench.html").read_text()
    assert not (tmp_path / "plots").exists()


def test_one_row_and_rows_without_macs_are_drawn(tmp_path: Path) -> None:
    assert len(plots.pictures([made(macs=0, macs_executed=0)], tmp_path)) == 2
    assert len(plots.pictures([made(), made("simam", macs=0, macs_executed=0)], tmp_path)) == 3


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize(
    "file", sorted(RESULTS.glob("*/bench.json")), ids=lambda path: path.parent.name
)
def test_committed_results_can_be_reported_again(file: Path, tmp_path: Path) -> None:
    rows = json.loads(file.read_text())
    report.write(rows, tmp_path, "attnzoo bench")
    lines = (tmp_path / "bench.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(rows) + 1


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine to open the page in")
def test_a_browser_sorts_by_true_values(written: Path) -> None:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync"):
        options.add_argument(f"--{flag}")
    options.add_argument("--disable-background-networking")
    options.add_argument("--disable-component-update")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get((written / "bench.html").as_uri())
        buttons = driver.find_elements("css selector", "thead button")
        at = [button.text for button in buttons].index("forward ms")
        for falling in (False, True):
            if falling:
                buttons[at].send_keys("\n")  # the keyboard does what a click does
            else:
                buttons[at].click()
            values = driver.execute_script(
                "return [...document.querySelectorAll('tbody tr')]"
                f".map((row) => row.cells[{at}]?.dataset.value)"
            )
            times = [float(value) for value in values[: len(attnzoo.names())]]
            assert times == sorted(times, reverse=falling)
            assert set(values[len(times) :]) == {None}  # failures stay at the end
        assert driver.get_log("browser") == []
    finally:
        driver.quit()
