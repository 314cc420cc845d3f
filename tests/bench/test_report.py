"""The tables, the page and the plots, from rows made up here."""

import base64
import csv
import hashlib
import html.parser
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import attnzoo
from attnzoo.bench import report
from attnzoo.bench.report import growth, plots, rows
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
    assert rows.ranks([1.0, 1.09, 1.15, 1.2, 9.0]) == [1, 1, 3, 3, 5]
    assert rows.ranks([2.0, 1.0]) == [2, 1]
    assert rows.ranks([]) == []


def test_rows_are_ranked_within_their_task() -> None:
    several = [row("se", 2.0), FAILED, row("eca"), row("gc", 9.0, dtype="bfloat16")]
    found = rows.ranked(several, "se")
    ranks = [(r["block"], r.get("rank"), r.get("baseline_ratio")) for r in found]
    assert ranks == [("gc", 1, None), ("eca", 1, 0.5), ("se", 2, 1.0), ("cbam", None, None)]


def test_the_terminal_has_whole_names_at_80_columns() -> None:
    text = report.terminal([*catalogue(), FAILED], width=80)
    lines = text.splitlines()
    found = {line.split()[0] for line in lines}
    assert set(attnzoo.names()) <= found
    assert all(len(line) <= 80 for line in lines if line.split()[0] in attnzoo.names()[:3])
    assert lines[0].split()[:3] == ["block", "rank", "forward"]
    assert "-- image 2x64x14x14" in lines
    assert "none (launch 12 %)" in report.terminal([row()], width=200)
    assert len(report.terminal([row()], width=200).splitlines()[0]) > len(lines[0])
    chosen = report.terminal([row()], columns=["params", "config"])
    assert chosen.splitlines()[0].split() == ["block", "params", "config"]
    with pytest.raises(ValueError, match="--columns 'speed' must be of block, rank"):
        report.terminal([row()], columns=["speed"])


def test_a_busy_machine_and_a_loose_time_are_said() -> None:
    assert "BUSY MACHINE: up to 4.0 processes" in report.terminal([row(load=4.0)])
    assert "BUSY" not in report.terminal([row()])
    unsettled = row(latency_forward=replace(row().latency_forward, settled=False))
    assert "~1" in report.terminal([unsettled])


def test_columns_have_units_and_bounds_their_share() -> None:
    shown = {column.title: column.text(row().to_json()) for column in rows.COLUMNS}
    assert shown["saved"] == "1 kB"
    assert shown["min bytes"] == "200 kB"
    assert shown["roof"] == "none (launch 12 %)"
    assert shown["roof fwd+bwd"] == "bandwidth 35 %"
    assert shown["fvcore"] == "1.2M without scaled_dot_product_attention 34.6k"
    assert shown["config"] == "c=64, reduction=16"
    assert shown["forward ms"] == "1 (1.05 to 1.3)"


def test_markdown_and_latex_escape_what_they_are_given() -> None:
    text = report.markdown([row(), FAILED], "attnzoo bench")
    assert HOSTILE not in text
    assert text.startswith("`attnzoo bench`\n")
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1
    tex = report.latex([row("pyraformer_cscm")])
    assert r"pyraformer\_cscm" in tex
    assert r"\midrule" in tex
    assert "12 %" not in tex.split(r"\midrule")[1].replace(r"\%", "")


def test_csv_has_every_field() -> None:
    (found, failed) = csv.DictReader(io.StringIO(report.table_csv([row(), FAILED])))
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


def test_the_page_runs_its_own_script_alone_and_loads_nothing(tmp_path: Path) -> None:
    report.write([row(), row("eca", 3.0), FAILED], tmp_path, f"attnzoo bench {HOSTILE}")
    text = (tmp_path / "bench.html").read_text()
    page = Reader(text)
    assert HOSTILE not in text
    assert page.tags.count("script") == 1
    assert "input" in page.tags
    assert not [link for link in page.loaded if not link.startswith("#")]
    (digest,) = re.findall(r"script-src 'sha256-([^']+)'", text)
    script = text.split("<script>")[1].split("</script>")[0]
    assert digest == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    titles = re.findall(r'<button type="button"[^>]*>([^<]+)</button>', text)
    assert titles[:4] == ["block", "rank", "forward ms", "fwd+bwd ms"]  # what a phone shows


def test_plots_are_the_same_twice_and_labels_stand_at_their_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shifts: list[Any] = []
    right = plots._label

    def watched(axes: Any, at: Any, name: str, taken: Any) -> Any:
        box = right(axes, at, name, taken)
        x, y = axes.transData.transform(at)
        shifts.append((max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0)))
        return box

    monkeypatch.setattr(plots, "_label", watched)
    plain = [one.to_json() for one in catalogue()]
    first = plots.pictures(plain, tmp_path / "a")
    assert first == plots.pictures(plain, tmp_path / "b")
    assert {p.name for p in first} >= {"latency-macs", "latency-bytes", "roofline"}
    assert max(max(pair) for pair in shifts) < 12


def test_exponents_and_which_of_them_are_doubtful() -> None:
    swept = [row(at=(size / 14) ** 2, shape={"x": [2, 64, size, size]}) for size in (14, 28, 56)]
    (_, line) = report.growth_lines(swept, {"size"})
    assert "se per size (per side; per pixel half), 3 points: forward 2.00, fwd+bwd 2.00" in line
    assert "doubtful" not in line
    noisy = [row(at=a, shape={"x": [2, 64, s, s]}) for a, s in ((1, 14), (5, 28), (2, 56))]
    assert "forward 0.50 (doubtful)" in report.growth_lines(noisy, {"size"})[1]
    assert growth.growth((1.0, 2.0, 4.0), (1.0, 8.0, 64.0)).exponent == pytest.approx(3.0)
    assert report.growth_lines(swept, set()) == []
