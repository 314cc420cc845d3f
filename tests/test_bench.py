"""The harness: counts against other counters, bytes by hand, and no time for a wrong block."""

import copy
import io
import warnings

import pytest
import torch
from rich.console import Console
from torch import nn

import attnzoo
from attnzoo.bench import count, report, run
from attnzoo.bench.timing import Latency
from attnzoo.bench.workload import call, make_inputs
from attnzoo.registry import find

from contract import blocks


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


def test_saved_bytes_are_what_autograd_keeps() -> None:
    class Square(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.exp() * 2).sin()

    x = torch.randn(2, 3, requires_grad=True)
    assert count.saved_bytes(Square(), {"x": x}) == 2 * 2 * 3 * 4  # exp's output and sin's input


@blocks
def test_macs_agree_with_fvcore_on_convolutions_and_products(name: str) -> None:
    """fvcore passes over attention and estimates einsum; where it counts all, it must agree."""
    from fvcore.nn import FlopCountAnalysis

    from attnzoo.ops.by_hand import plain_forms

    entry = find(name)
    block = attnzoo.build(name, **entry.example).eval()
    inputs = make_inputs(entry, dict(entry.example), entry.extent._replace(batch=1))

    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, *values: torch.Tensor) -> object:
            return call(self.block, dict(zip(inputs, values, strict=True)))

    if any(isinstance(value, list) for value in inputs.values()):
        return  # fvcore's tracer takes tensors alone
    with warnings.catch_warnings(), plain_forms():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns of every Python branch
        analysis = FlopCountAnalysis(Called(), tuple(inputs.values()))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
    counted = sum(by_operator[kind] for kind in ("conv", "linear", "matmul", "bmm", "addmm"))
    passed_over = {"aten::scaled_dot_product_attention", "aten::baddbmm"}
    if by_operator["einsum"] or passed_over & set(analysis.unsupported_ops()):
        assert counted < count.macs(block, inputs)
    else:
        assert counted == count.macs(block, inputs)


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


def test_measuring_leaves_the_block_as_it_was() -> None:
    block = attnzoo.build("se", 32)
    before = copy.deepcopy(block.state_dict())
    count.macs(block, {"x": torch.randn(2, 32, 4, 4)})
    assert block.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), block.state_dict().values()))  # noqa: B905
