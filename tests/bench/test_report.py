"""The tables, the page and the plots, from rows made up here."""

import csv
import html.parser
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import attnzoo
from attnzoo.bench import report
from attnzoo.bench.report import plots, table
from attnzoo.bench.report.page import page
from attnzoo.bench.report.table import Table
from attnzoo.bench.row import Failure, Row

from synthetic import row

HOSTILE = "<script>alert('x')</script>"
FAILED = Failure(block="cbam", error=f"ValueError: {HOSTILE}")


def catalogue() -> list[Row]:
    """A row for each block of the catalogue, many of them close together."""
    return [
        row(
            name,
            0.4 * 1.13 ** (7 * i % 11),
            layout=attnzoo.describe(name).layout,
            macs=10 ** (3 + i % 5),
            bytes_forward=200_000 + 7_000 * (i % 6),
        )
        for i, name in enumerate(attnzoo.names())
    ]


def test_a_tie_is_a_tenth_wide_and_never_wider() -> None:
    assert table.ranks([1.0, 1.09, 1.15, 1.2, 9.0]) == [1, 1, 3, 3, 5]
    assert table.ranks([2.0, 1.0]) == [2, 1]
    assert table.ranks([]) == []


def test_rows_are_ranked_within_their_task() -> None:
    several = [row("se", 2.0), FAILED, row("eca"), row("gc", 9.0, dtype="bfloat16")]
    found = Table(several, "se")
    ranks = {r["block"]: (r["rank"], r["baseline_ratio"]) for r in found.measured}
    assert ranks == {"gc": (1, None), "eca": (1, 0.5), "se": (2, 1.0)}
    assert [r["block"] for r in found.failed] == ["cbam"]


def test_the_terminal_has_whole_names_at_80_columns() -> None:
    text = report.terminal([*catalogue(), FAILED], width=80)
    lines = text.splitlines()
    found = {line.split()[0] for line in lines}
    assert set(attnzoo.names()) <= found
    assert all(len(line) <= 80 for line in lines if line.split()[0] in attnzoo.names()[:3])
    assert lines[0].split()[:3] == ["block", "rank", "forward"]
    assert "±" in lines[0].split()
    assert "-- image 2x64x14x14" in lines
    assert "none (launch 12 %)" in report.terminal([row()], width=200)
    assert len(report.terminal([row()], width=200).splitlines()[0]) > len(lines[0])
    chosen = report.terminal([row()], columns=["params", "config"])
    assert chosen.splitlines()[0].split() == ["block", "params", "config"]
    with pytest.raises(ValueError, match="--columns 'speed' must be of block, rank"):
        report.terminal([row()], columns=["speed"])


def test_a_busy_machine_and_a_loose_time_are_said() -> None:
    busy = "BUSY MACHINE: load up to 4.0 per processor, 3% of the samples disturbed, 0 of 1 forward"
    assert busy in report.terminal([row(load=4.0)])
    assert "BUSY" not in report.terminal([row()])
    unsettled = row(latency_forward=replace(row().latency_forward, settled=False))
    assert "~1" in report.terminal([unsettled])


def test_columns_have_units_and_bounds_their_share() -> None:
    (found,) = Table([row()], "se").measured
    shown = {column.title: column.text(found) for column in table.COLUMNS}
    assert shown["saved"] == "1 kB"
    assert shown["min bytes"] == "200 kB"
    assert shown["roof"] == "none (launch 12 %)"
    assert shown["roof fwd+bwd"] == "bandwidth 35 %"
    assert shown["fvcore"] == "1.2M without scaled_dot_product_attention 34.6k"
    assert shown["config"] == "c=64, reduction=16"
    assert (shown["forward ms"], shown["±"], shown["disturbed"]) == ("1", "30 %", "3 %")
    assert (shown["rank"], shown["/ baseline"]) == ("1", "1.00")


def test_rows_of_several_conditions_say_which() -> None:
    found = Table([row(), row(dtype="bfloat16")])
    assert "dtype" in [column.title for column in found.columns]
    assert "float32" not in found.conditions
    assert [table.label(one, found.measured) for one in found.measured] == [
        "se dtype=bfloat16",
        "se dtype=float32",
    ]


def test_markdown_and_latex_escape_what_they_are_given() -> None:
    text = table.markdown(Table([row(), FAILED]), "attnzoo bench")
    assert HOSTILE not in text
    assert text.startswith("`attnzoo bench`\n")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    tex = table.latex(Table([row("pyraformer_cscm")]))
    assert r"pyraformer\_cscm" in tex
    assert r"\midrule" in tex
    assert "12 %" not in tex.split(r"\midrule")[1].replace(r"\%", "")


def test_csv_has_every_field() -> None:
    (found, failed) = csv.DictReader(io.StringIO(table.table_csv(Table([row(), FAILED]))))
    assert {**row().to_json()}.keys() <= found.keys()
    assert json.loads(found["config"]) == {"c": 64, "reduction": 16}
    assert failed["error"] == FAILED.error


class Reader(html.parser.HTMLParser):
    """Counts tags and gathers what a page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [v or "" for k, v in attrs if k in ("src", "href")]


def test_the_page_escapes_and_loads_nothing(tmp_path: Path) -> None:
    hostile = row("eca", 3.0, config={"act": HOSTILE})
    report.write([row(), hostile, FAILED], tmp_path, f"attnzoo bench {HOSTILE}")
    text = (tmp_path / "bench.html").read_text()
    found = Reader(text)
    assert HOSTILE not in text
    assert found.tags.count("script") == 1
    assert "input" in found.tags
    assert found.loaded
    assert all(link.startswith("data:image/svg+xml;base64,") for link in found.loaded)
    titles = re.findall(r"<th[^>]*>([^<]+)</th>", text)
    shown = [title.strip() for title in titles[:4]]
    assert shown == ["block", "rank", "forward ms", "fwd+bwd ms"]  # what a phone shows


def test_the_page_of_no_rows_says_so() -> None:
    assert "Nothing could be measured" in page(Table([FAILED]), "attnzoo bench", {})


def test_plots_are_the_same_twice_and_name_every_block(tmp_path: Path) -> None:
    plain = [one.to_json() for one in catalogue()]
    first = plots.pictures(plain, tmp_path / "a")
    assert first == plots.pictures(plain, tmp_path / "b")
    assert first.keys() == {"latency-macs", "latency-bytes", "roofline"}
    few = plots.pictures([row().to_json(), row(c=32).to_json()], tmp_path / "c")
    assert all(f"<!-- se c={c}, reduction=16 2x{c}x14x14" in few["roofline"] for c in (32, 64))
