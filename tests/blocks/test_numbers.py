"""Capabilities of numbers: derivatives, half precision, large inputs."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import attnzoo
from attnzoo.registry import Inputs
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import call, leaves, map_tensors, tensors

from contract import ODD, blocks, made, step
from matrix import Cell

pytestmark = blocks
FEW = attnzoo.InputSize(
    batch=1, steps=7, height=3, width=4
)  # if the fast check fails, each element is checked
HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.capability("gradcheck")
def test_gradients_are_derivatives(name: str) -> None:
    _, block, inputs = made(name, FEW, dtype=torch.float64)
    wanting = leaves(inputs)
    points = [t for t in (*tensors(wanting), *block.parameters()) if t.requires_grad]

    def run(*_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors(call(block, wanting)))

    assert torch.autograd.gradcheck(run, points, fast_mode=True, atol=1e-6)
    assert torch.autograd.gradgradcheck(run, points, fast_mode=True, atol=1e-4)


@pytest.mark.capability("bfloat16")
def test_bfloat16(name: str) -> None:
    _cast(name, torch.bfloat16)


@pytest.mark.capability("float16")
def test_float16(name: str) -> None:
    _cast(name, torch.float16)


def _cast(name: str, dtype: torch.dtype) -> None:
    _, block, inputs = made(name, ODD)
    wanted = step(block, inputs)
    for train in (False, True):
        found = step(copy.deepcopy(block).to(dtype).train(train), scaled(inputs, 1, dtype))
        assert all(t.dtype == dtype for t in tensors(found) if t.is_floating_point())
        assert all(t.isfinite().all() for t in tensors(found))
        if not train:  # in training, dropout and batch statistics differ
            assert_close(found["outputs"], wanted["outputs"], dtype)


@pytest.mark.capability("autocast")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_runs_and_trains(name: str, dtype: torch.dtype) -> None:
    _, block, inputs = made(name, ODD)
    wanted = step(block, inputs)

    def run(points: Inputs) -> Any:
        with torch.autocast("cpu", dtype):
            return call(block, points)

    found = step(block, inputs, run)
    assert all(t.isfinite().all() for t in tensors(found))
    assert_close(found["outputs"], wanted["outputs"], dtype)
    with torch.autocast("cpu", dtype):  # backward() inside works, although torch advises against it
        inside = step(block, inputs)
    assert all(t.isfinite().all() for t in tensors(inside))
    assert_close(inside["outputs"], wanted["outputs"], dtype)


@pytest.mark.capability("autocast")
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_around_the_whole_step(name: str, parameters: torch.dtype) -> None:
    """With the backward pass inside autocast; also with half-precision parameters."""
    _, block, inputs = made(name, ODD)
    wanted = step(block, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = step(block.to(parameters), inputs)
    assert all(t.isfinite().all() for t in tensors(found))
    assert_close(found["outputs"], wanted["outputs"], torch.bfloat16)


@pytest.mark.capability("scale_bfloat16")
def test_scale_bfloat16(name: str, cell: Cell) -> None:
    cell.value(largest_scale(name, torch.bfloat16))


@pytest.mark.capability("scale_float16")
def test_scale_float16(name: str, cell: Cell) -> None:
    cell.value(largest_scale(name, torch.float16))


SCALES = ("1", "10", "30", *(f"1e{power}" for power in (2, 3, 4, 6, 9, 12, 18, 24, 30, 36)))


def largest_scale(name: str, dtype: torch.dtype) -> str:
    """The last scale at which everything is finite; up to 30, overflows must be true ones."""
    _, block, inputs = made(name, ODD)
    block.to(dtype)
    reached = ""
    for text in SCALES:
        large = scaled(inputs, float(text), dtype)
        if not all(t.isfinite().all() for t in tensors(large)):
            break  # no such input exists in this dtype
        found = mean_step(block, large)
        if not all(t.isfinite().all() for t in tensors(found)):
            if float(text) <= 30:
                wide = copy.deepcopy(block).double()
                assert_too_large(mean_step(wide, scaled(large, 1, torch.float64)), found, text)
            break
        reached = text
    assert reached, "overflows at a standard deviation of 1"
    return reached


def mean_step(block: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Outputs divided by their number of elements, as in a mean loss, and their gradients."""
    return step(block, inputs, lambda points: [o / o.numel() for o in tensors(call(block, points))])


def assert_too_large(true: dict[str, Any], found: dict[str, Any], scale: str) -> None:
    """Assert that non-finite results exceed the dtype's range in float64, too."""
    largest = torch.finfo(found["outputs"][0].dtype).max
    if any(t.abs().max() * t.numel() > largest for t in true["outputs"]):
        return
    for a, b in zip(tensors(found), tensors(true), strict=True):
        assert a.isfinite().all() or b.abs().max() > largest, f"overflow at input scale {scale}"


def scaled(inputs: Inputs, factor: float, dtype: torch.dtype) -> Inputs:
    """Floating-point inputs times `factor`, cast to `dtype`; others unchanged."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor * factor).to(dtype) if tensor.is_floating_point() else tensor

    return map_tensors(change, inputs)
