"""The harness: counts against other counters, bytes by hand, and no time for a wrong block."""

import copy
import io
import warnings

import torch
from rich.console import Console
from torch import nn

import attnzoo
from attnzoo.bench import count, report, run
from attnzoo.bench.workload import call, make_inputs
from attnzoo.registry import find

from contract import blocks


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
