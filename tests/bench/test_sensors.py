"""The study of two sensors: its patches, its scenes, and the document that it wrote."""

import re
from pathlib import Path

import pytest
import torch

import sensors as study

DOCS = Path(__file__).parents[2] / "docs"


def test_patches_of_both_images_are_around_the_same_place() -> None:
    side = study.SIDE
    places = torch.arange(float(side * side)).view(1, 1, side, side)
    fine = places.repeat_interleave(4, 2).repeat_interleave(4, 3)
    x, y = study.patches(places, 8, 1), study.patches(fine, 32, 4)
    assert torch.equal(x[:, 0, 4, 4], torch.arange(float(side * side)))
    middle = side * (side // 2) + side // 2
    assert torch.equal(y[middle, 0, ::4, ::4], x[middle, 0])


def test_one_image_tells_half_of_a_class() -> None:
    drawn = study.scene(3)
    means = [drawn.ms[0, :, drawn.classes == k].mean(1) for k in range(4)]
    texture = [drawn.pan[0, 0, 2::4, 2::4][drawn.classes == k].std() for k in range(4)]
    for a, b in ((0, 1), (2, 3)):
        assert (means[a] - means[b]).abs().max() < 0.2
    assert (means[0] - means[2]).abs().max() > 0.5
    assert max(texture) < 1.3 * min(texture)  # what differs is how smooth it is


@pytest.mark.slow
def test_the_study_writes_its_files(tmp_path: Path) -> None:
    study.main(["--out", str(tmp_path), "--first", "2", "--steps", "2", "--seeds", "1"])
    assert len(rows(tmp_path)) == 2
    assert (tmp_path / "sensors.png").read_bytes().startswith(b"\x89PNG")


def test_the_document_shows_that_both_images_are_needed() -> None:
    for fused, pan, ms in rows(DOCS):
        assert float(fused) > 1.5 * max(float(pan), float(ms))
    assert len(rows(DOCS)) == 2
    assert (DOCS / "sensors.png").stat().st_size < 300_000


def rows(folder: Path) -> list[tuple[str, str, str]]:
    text = (folder / "sensors.md").read_text(encoding="utf-8")
    cell = r"([\d.]+)% \([^|]*\) \| "
    return re.findall(rf"^\| (?:the authors'|all of it) \| {3 * cell}", text, re.M)
