"""The study of forecasts: its windows, its baselines, and the document that it wrote."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("statsmodels")

import forecast as study

DOCS = Path(__file__).parents[2] / "docs"


def test_the_parts_of_a_series_share_no_future() -> None:
    values = torch.arange(200.0)
    past, future = study.windows(values, 0, 140, 24, 12)
    assert future.max() == 139
    assert torch.equal(past[:, -1] + 1, future[:, 0])
    _, later = study.windows(values, 140, 170, 24, 12)
    assert (later.min(), later.max()) == (140, 169)


def test_the_season_and_its_change_continue_a_line_with_a_season() -> None:
    t = torch.arange(60.0)
    values = 0.5 * t + torch.sin(t * torch.pi / 6)
    past, future = study.windows(values, 24, 60, 24, 18)
    torch.testing.assert_close(study.season(past, 18, change=True), future)
    off = (future - study.season(past, 18, change=False))[0, :, 0]
    torch.testing.assert_close(off, torch.where(torch.arange(18) < 12, 6.0, 12.0))


def test_the_mean_season_is_that_of_each_month() -> None:
    t = torch.arange(36.0)[None, :, None]
    found = study.mean_season(torch.sin(t * torch.pi / 6) + t // 12, 18)
    wanted = 1 + torch.sin(torch.arange(18.0) * torch.pi / 6)
    torch.testing.assert_close(found[0, :, 0], wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_study_writes_its_files(tmp_path: Path) -> None:
    study.main(["--out", str(tmp_path), "--epochs", "1", "--seeds", "2"])
    assert (tmp_path / "forecasts.png").read_bytes().startswith(b"\x89PNG")
    assert len(rows(tmp_path)) == 6


def test_the_document_has_every_forecaster_of_both_series() -> None:
    names = ["unet_tsf", "pyraformer", "dilated_inception"]
    assert [name for name, *_ in rows(DOCS)] == 2 * names
    assert all(float(low) <= float(mean) <= float(high) for _, mean, low, high in rows(DOCS))


def rows(folder: Path) -> list[tuple[str, str, str, str]]:
    text = (folder / "forecasting.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", text, re.M)
