"""The study of generated fields: its scenes, its truth, and the document that it wrote."""

import re
from pathlib import Path

import pytest
import torch

import parcels as study

DOCS = Path(__file__).parents[2] / "docs"


def drawn(count: int = 3) -> study.Scenes:
    return study.scenes(count, torch.Generator().manual_seed(1))


def test_a_parcel_has_one_crop_and_its_box() -> None:
    batch = drawn()
    centers, sizes, there = study.boxes(batch.parcels)
    assert int(there.sum()) == sum(len(p.unique()) for p in batch.parcels)
    for b, i in there.nonzero().tolist():
        mask = batch.parcels[b] == i
        assert len(batch.crops[b][mask].unique()) == 1
        assert mask.sum() == sizes[b, i].prod()  # rectangles
        at = mask.nonzero().float().mean(0) + 0.5
        assert torch.equal(at, centers[b, i])
    heat = study.target_heat(batch.parcels)
    assert int((heat > 0.999).sum()) >= int(there.sum())


def test_the_first_date_is_there_and_days_rise() -> None:
    batch = drawn()
    assert not batch.missing[:, 0].any()
    assert batch.missing.any()
    assert (batch.days.diff() >= 0).all()


def test_the_truth_scores_full_marks() -> None:
    batch = drawn()

    class Truth(torch.nn.Module):
        def panoptic(self, maps: object) -> tuple[torch.Tensor, torch.Tensor]:
            scores = torch.nn.functional.one_hot(batch.crops, len(study.CROPS))
            return batch.parcels + 1, scores.permute(0, 3, 1, 2)

    net = torch.nn.Module()
    net.head, net.maps = Truth(), lambda batch: []
    found, _ = study.score_panoptic(net, batch)
    assert found == (1.0, 1.0, 1.0)


@pytest.mark.slow
def test_the_study_writes_its_files(tmp_path: Path) -> None:
    study.main(["--out", str(tmp_path), "--steps", "2", "--parcel-steps", "2", "--seeds", "1"])
    assert len(rows(tmp_path)) == 2
    for name in ("parcels.png", "parcels-found.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_document_has_three_seeds_of_both() -> None:
    assert [row[0] for row in rows(DOCS)] == 2 * ["0", "1", "2"]
    params = sum(p.numel() for p in study.attnzoo.build("utae", **study.CONFIG).parameters())
    assert f"A network of {params:,} parameters" in text(DOCS)
    assert (DOCS / "parcels.png").stat().st_size < 300_000


def rows(folder: Path) -> list[tuple[str, str]]:
    return re.findall(r"^\| (\d) \| ([\d.]+)% \| [\d.]+% \| [\d.]+% \|$", text(folder), re.M)


def text(folder: Path) -> str:
    return (folder / "parcels.md").read_text(encoding="utf-8")
