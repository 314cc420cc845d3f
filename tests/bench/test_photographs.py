"""The study of photographs with made-up labels: its rule, its crops, and the document it wrote."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("sklearn")

import photographs as study

DOCS = Path(__file__).parents[2] / "docs"


def test_the_rule_is_on_colors() -> None:
    colors = torch.tensor([[0.9, 0.9, 0.9], [0.1, 0.1, 0.1], [0.6, 0.2, 0.3], [0.3, 0.5, 0.4]])
    flat = colors[:, :, None, None].expand(-1, -1, 12, 12)
    assert study.labels(flat)[:, 5, 5].tolist() == [0, 1, 2, 3]


def test_labels_are_cut_and_mirrored_with_the_image() -> None:
    height, width = study.SIZE
    place = torch.arange(float(height * width)).view(1, 1, height, width)
    photos = study.Photographs(place.expand(2, 3, -1, -1), place[0].expand(2, -1, -1).long())
    batch = study.crops(photos, torch.Generator().manual_seed(0), 8)
    assert torch.equal(batch.x[:, 0].long(), batch.labels)
    steps = batch.labels[:, 0, 1] - batch.labels[:, 0, 0]
    assert set(steps.tolist()) == {1, -1}


@pytest.mark.slow
def test_the_study_writes_its_files(tmp_path: Path) -> None:
    study.main(["--out", str(tmp_path), "--steps", "2", "--seeds", "1"])
    assert len(rows(tmp_path)) == 2
    assert (tmp_path / "photographs.png").read_bytes().startswith(b"\x89PNG")


def test_the_document_shows_that_it_learned() -> None:
    most, trained = rows(DOCS)
    assert float(trained) > float(most)
    assert (DOCS / "photographs.png").stat().st_size < 300_000


def rows(folder: Path) -> list[str]:
    text = (folder / "photographs.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (?:the most|`u_mix)[^|]*\| ([\d.]+)%", text, re.M)
