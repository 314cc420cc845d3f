"""The study of upsamplers on a photograph: all of them, and a document that it wrote."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import attnzoo

import upsample_photo as study

DOCS = Path(__file__).parents[2] / "docs"
UPSAMPLERS = attnzoo.names(family="upsampler")


@pytest.mark.slow
def test_the_study_writes_a_picture_and_a_row_for_every_upsampler(tmp_path: Path) -> None:
    study.main(["--out", str(tmp_path), "--size", "48", "64"])
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+) x (\d+) \| ([\d,]+) \| ([\d.]*) \|$", text(tmp_path), re.M
    )
    assert [row[0] for row in rows] == UPSAMPLERS
    doubled = {row[0] for row in rows if row[1:3] == ("6", "8")}
    assert doubled == {"carafe", "sapa", "ifa"}
    assert all(row[1:3] == ("48", "64") for row in rows if row[0] not in doubled)
    assert all(0.1 < float(row[4]) < 3 for row in rows if row[0] != "implicit")
    picture = (tmp_path / "upsamplers.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_the_document_has_every_upsampler_as_it_is() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([\d,]+) \|", text(DOCS), re.M))
    params = {n: sum(p.numel() for p in attnzoo.build(n, 11).parameters()) for n in UPSAMPLERS}
    assert rows == {name: f"{count:,}" for name, count in params.items()}
    assert (DOCS / "upsamplers.png").stat().st_size < 300_000


def test_the_error_is_that_of_features_of_the_same_place() -> None:
    torch.manual_seed(0)
    photo = torch.rand(1, 3, 48, 48)
    target = study.features(photo)
    patches = F.avg_pool2d(target, study.PATCH)
    wanted = F.interpolate(patches, (48, 48), mode="bilinear", align_corners=False)
    result = study.upsample("bilinear", photo, target)
    torch.testing.assert_close(result.features, wanted)
    assert result.error == pytest.approx((wanted - target).square().mean().sqrt().item())


def test_a_filter_has_no_mean_and_one_orientation() -> None:
    bank = study.filter_bank()
    assert bank.sum((1, 2, 3)).abs().max() < 1e-5
    stripes = torch.arange(-6, 7.0).mul(torch.pi / 2).cos().expand(13, 13)  # across the columns
    even = bank[:8:2, 0]  # of the finer scale, at 0, 45, 90 and 135 degrees
    answers = torch.stack([(even * s).sum((1, 2)).abs() for s in (stripes, stripes.T)])
    assert answers.argmax(1).tolist() == [0, 2]


def text(folder: Path) -> str:
    return (folder / "upsamplers.md").read_text(encoding="utf-8")
