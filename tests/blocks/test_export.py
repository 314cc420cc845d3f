"""Blocks that leave Python: exported, decomposed, saved, recorded by make_fx, and as ONNX."""

import pytest
import torch
from torch import nn

from attnzoo.registry import InputSize
from attnzoo.testing.checks import export
from attnzoo.testing.step import call_like

from contract import blocks, subject

modes = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


@pytest.mark.slow
@blocks
@modes
@pytest.mark.capability("export")
def test_an_exported_program_trains_like_eager_at_any_size(name: str, train: bool) -> None:
    export.export(subject(name), [train])


@pytest.mark.slow
@blocks
def test_an_exported_program_runs_or_refuses_tiny_sizes(name: str) -> None:
    assert export.export_tiny(subject(name)) is None


@pytest.mark.slow
@blocks
@pytest.mark.capability("export")
def test_a_saved_program_equals_the_block(name: str) -> None:
    export.export_saved(subject(name))


@pytest.mark.slow
@blocks
@pytest.mark.capability("export")
def test_a_decomposed_program_keeps_the_gradients(name: str) -> None:
    export.export_decomposed(subject(name))


@blocks
@modes
@pytest.mark.capability("make_fx")
def test_make_fx_graphs_train_like_eager(name: str, train: bool) -> None:
    export.recorded_by_make_fx(subject(name), [train])


@pytest.mark.slow
@blocks
@pytest.mark.capability("onnx")
def test_onnx_of_one_size_gives_eager_outputs(name: str) -> None:
    assert export.onnx(subject(name)) is None


@pytest.mark.slow
@blocks
@pytest.mark.capability("onnx_dynamic")
def test_onnx_gives_eager_outputs_at_any_size(name: str) -> None:
    assert export.onnx_dynamic(subject(name)) is None


guards = pytest.mark.left_out_if(torch.__version__ < (2, 7), "its programs have no such guards")


@pytest.mark.parametrize(
    ("name", "least", "below"),
    [
        ("dia", InputSize(height=3, width=3), InputSize(height=3, width=2)),  # a mask 2 wide, or 1
        pytest.param(
            *("ct_msa", InputSize(steps=7), InputSize(steps=6)),  # windows of 6
            marks=guards,
        ),
        pytest.param(
            *("pyraformer_cscm", InputSize(steps=12), InputSize(steps=11)),  # 3 * 2 at the top
            marks=guards,
        ),
    ],
)
def test_a_program_refuses_sizes_that_torch_specializes(
    name: str, least: InputSize, below: InputSize
) -> None:
    block, program = export.exported(subject(name), False)
    export.assert_trains_alike(block, program, subject(name).inputs(least, seed=3))
    with pytest.raises((AssertionError, RuntimeError), match=r"Guard failed|Expected input"):
        call_like(block, program.module(), subject(name).inputs(below, seed=3))


def test_a_decomposed_batch_norm_does_not_train_in_torch_itself() -> None:
    norm, x = nn.BatchNorm1d(3), torch.randn(4, 3)
    program = torch.export.export(norm, (x,))
    program.module()(x).sum().backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        program.run_decompositions().module()(x).sum().backward()
