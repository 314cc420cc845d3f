"""Shared by the tests of every block: a block with random parameters, its inputs, one step."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.registry import Entry, Inputs, find
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.step import assert_steps_equal as assert_steps_equal
from attnzoo.testing.step import call_like as call_like
from attnzoo.testing.step import step as step
from attnzoo.testing.subject import FEW as FEW
from attnzoo.testing.subject import ODD as ODD
from attnzoo.testing.subject import SINGLE as SINGLE
from attnzoo.testing.subject import SMALL as SMALL
from attnzoo.testing.subject import Subject, registered

blocks = pytest.mark.every_block  # parametrized at collection, to include --blocks


@functools.cache
def subject(name: str) -> Subject:
    """A block as the checks of `attnzoo.testing` take it."""
    return registered(name)


def made(
    name: str,
    extent: attnzoo.InputSize | None = None,
    dtype: torch.dtype = torch.float32,
    train: bool = False,
    **config: Any,
) -> tuple[Entry, nn.Module, Inputs]:
    """A block with random parameters, none of them left at zero, and matching inputs."""
    one, size = registered(name, **config), extent or find(name).input_size
    return find(name), one.module(dtype, train), one.inputs(size, dtype)


def inner_layers(block: nn.Module) -> dict[str, nn.Module]:
    """The layers within a block that have parameters and no layers of their own."""
    return {
        path: module
        for path, module in block.named_modules()
        if path and not any(module.children()) and any(True for _ in module.parameters())
    }


def assert_large_sums_fit(name: str, dtype: torch.dtype) -> None:
    """Check that sums of values near 1000, which exceed float16, do not overflow in `dtype`."""
    _, block, inputs = made(name, attnzoo.InputSize(height=40, width=30), train=True)
    x = (1000 + 100 * inputs["x"]).to(dtype)
    wanted = copy.deepcopy(block)(x.float())
    y = block.to(dtype)(x.requires_grad_())
    assert_close(y, wanted, torch.bfloat16)
    (grad,) = torch.autograd.grad(y, x, torch.full_like(y, 1e-3))
    assert grad.isfinite().all()


def assert_takes_float32_under_autocast(block: nn.Module, x: Tensor, half: torch.dtype) -> None:
    """Check a float32 input under autocast to `half`, the dtype of the parameters."""
    x.requires_grad_()
    block = block.to(half)
    with torch.autocast("cpu", half):
        y = block(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.float32
    block.float()
    assert_close(y, block(x), half)
