"""Shared by the tests of every block: a block with random parameters, its inputs, one step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import attnzoo
from attnzoo.registry import Entry, Inputs, find
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import (
    arguments,
    call,
    leaves,
    make_inputs,
    randomize_parameters,
    tensors,
)

blocks = pytest.mark.every_block  # parametrized at collection, to include --blocks

SMALL = attnzoo.InputSize(batch=2, steps=7, height=5, width=6)
ODD = attnzoo.InputSize(batch=3, steps=13, height=9, width=11)
SINGLE = attnzoo.InputSize(batch=1, steps=24, height=14, width=14)


def made(
    name: str,
    extent: attnzoo.InputSize | None = None,
    dtype: torch.dtype = torch.float32,
    train: bool = False,
    **config: Any,
) -> tuple[Entry, nn.Module, Inputs]:
    """A block with random parameters, none of them left at zero, and matching inputs."""
    entry = find(name)
    settings = {**entry.example, **config}
    block = attnzoo.build(name, **settings, dtype=dtype).train(train)
    randomize_parameters(block)
    inputs = make_inputs(entry, settings, extent or entry.input_size, dtype=dtype)
    return entry, block, inputs


def step(block: nn.Module, inputs: Inputs, run: Any = None) -> dict[str, Any]:
    """Outputs and every gradient of one step; `run(inputs)` replaces the call of the block."""
    points = leaves(inputs)
    block.zero_grad()
    outputs = list(tensors(call(block, points) if run is None else run(points)))
    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    return {
        "outputs": [o.detach() for o in outputs],
        "inputs": [t.grad for t in tensors(points) if t.grad is not None],
        "parameters": {k: p.grad for k, p in block.named_parameters() if p.grad is not None},
    }


def assert_steps_equal(block: nn.Module, inputs: Inputs, run: Any) -> None:
    """Assert that `run(inputs)` has the block's outputs, gradients and updates of buffers."""
    state = {k: v.clone() for k, v in block.state_dict().items()}
    found, after = step(block, inputs), {k: v.clone() for k, v in block.named_buffers()}
    block.load_state_dict(state)
    assert_close(found, step(block, inputs, run))
    assert_close(after, dict(block.named_buffers()))


def call_like(block: nn.Module, function: Callable[..., Any], inputs: Inputs) -> Any:
    """Call `function` with the inputs as the arguments of `block.forward`."""
    positional, keywords = arguments(block, inputs)
    return function(*positional, **keywords)
