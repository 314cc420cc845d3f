"""The papers' networks count what their authors' do, and the page says so."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import papers  # noqa: E402

TEXT = papers.PAGE.read_text()
ROWS = papers.rows()
QUICK = ("SE-ResNet-50", "CBAM-ResNet-18", "CBAM-ResNet-50", "MobileNetV2", "SKNet-50", "L-TAE")
QUICK += ("EfficientViT-B1", "SwiftFormer-XS", "Agent-DeiT-T", "Pyraformer")


def marked(row: papers.Row) -> object:
    quick = row.name.startswith(QUICK) and "Caffe" not in row.recipe
    return pytest.param(row, marks=() if quick else pytest.mark.slow, id=f"{row.name}-{row.params}")


@pytest.mark.parametrize("row", [marked(row) for row in ROWS])
def test_counts_are_the_papers_to_the_integer(row: papers.Row) -> None:
    params, macs = papers.counted(row.build(), row.macs is not None)
    assert (params, macs) == (row.params, row.macs)
    assert f"{papers.line(row, (params, macs))}" in TEXT


def test_the_page_has_these_rows_and_no_others() -> None:
    assert TEXT.startswith(papers.HEAD)
    lines = TEXT.removeprefix(papers.HEAD).splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [r.name for r in ROWS]
