"""Capabilities of arithmetic: derivatives, half precision, large inputs."""

import pytest
import torch

from attnzoo.testing.checks import numbers

from contract import blocks, subject
from matrix import Cell

pytestmark = blocks


@pytest.mark.capability("gradcheck")
def test_gradients_are_derivatives(name: str) -> None:
    assert numbers.gradcheck(subject(name)) is None
    assert numbers.gradgradcheck(subject(name)) is None


@pytest.mark.capability("bfloat16")
def test_bfloat16(name: str) -> None:
    assert numbers.bfloat16(subject(name)) is None


@pytest.mark.capability("float16")
def test_float16(name: str) -> None:
    assert numbers.float16(subject(name)) is None


@pytest.mark.capability("autocast")
@pytest.mark.parametrize("dtype", numbers.HALVES, ids=str)
def test_autocast_runs_and_trains(name: str, dtype: torch.dtype) -> None:
    numbers.autocast(subject(name), [dtype])


@pytest.mark.capability("autocast")
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_around_the_whole_step(name: str, parameters: torch.dtype) -> None:
    """The backward pass within it, too; and parameters cast before, where inputs are float32."""
    assert numbers.autocast_step(subject(name), [parameters]) is None


@pytest.mark.capability("scale_bfloat16")
def test_scale_bfloat16(name: str, cell: Cell) -> None:
    cell.record(numbers.scale_bfloat16(subject(name)))


@pytest.mark.capability("scale_float16")
def test_scale_float16(name: str, cell: Cell) -> None:
    cell.record(numbers.scale_float16(subject(name)))
