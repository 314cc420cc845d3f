"""The harness: rows, reports, and no time for a wrong block."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

import attnzoo
from attnzoo.bench import report, run
from attnzoo.bench.timing import Latency
from attnzoo.registry import find


def test_measure_gives_one_row() -> None:
    row = attnzoo.measure("se", c=48, reduction=8, size=(5, 6), batch=3, min_time=0.01)
    assert row.config == {"c": 48, "reduction": 8, "bias": False}
    assert row.params == row.macs == 2 * 48 * 6
    pixels = 3 * 48 * 5 * 6
    assert row.bytes_forward == 4 * (2 * pixels + row.params)
    assert row.bytes_training == 2 * row.bytes_forward
    assert row.memory_peak_bytes is None
    assert isinstance(row.latency_forward, Latency)
    assert row.latency_forward.p20 <= row.latency_forward.median <= row.latency_forward.p80
    assert row.latency_forward.samples >= 5


def test_measure_takes_channels_by_position_and_examples_by_default() -> None:
    assert attnzoo.measure("se", 32, min_time=0.01).config["c"] == 32
    assert attnzoo.measure("se", min_time=0.01).config["c"] == find("se").example["c"]


def test_a_wrong_block_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    block = find("se").cls
    right = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x: 1.01 * right(self, x))
    with pytest.raises(run.WrongResultError, match="reference case 'base' is off by"):
        attnzoo.measure("se")
    (row,) = run.table(["se"], run.Settings())
    assert isinstance(row, run.Failure)
    assert "latency_forward_ms" not in row.to_json()


def test_a_block_wrong_in_one_dtype_gets_no_time_there(monkeypatch: pytest.MonkeyPatch) -> None:
    block = find("se").cls
    right = block.forward

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return right(self, x) * (1.2 if x.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(block, "forward", forward)
    assert attnzoo.measure("se", min_time=0.01).dtype == "float32"
    with pytest.raises(run.WrongResultError, match="output 0 is off by"):
        attnzoo.measure("se", dtype="bfloat16")


def test_size_means_length_for_sequences() -> None:
    settings = run.Settings(size=5)
    for name in attnzoo.names(layout="sequence"):
        entry = find(name)
        if entry.layouts[0] == "sequence":
            assert settings.extent(entry).steps == 5
    assert settings.extent(find("se"))[2:] == (5, 5)


def test_reports_show_rows_and_failures() -> None:
    row = attnzoo.measure("se", min_time=0.01)
    rows = [row, run.Failure(block="cbam", error="ValueError: why")]
    text = io.StringIO()
    Console(file=text, width=200).print(report.terminal(rows))
    assert "2x64x14x14" in text.getvalue()
    assert "not measured" in text.getvalue()
    assert "cbam has no row: ValueError: why" in report.markdown(rows, "attnzoo bench")
    assert "Nothing could be measured" in report.heading(rows[1:])
