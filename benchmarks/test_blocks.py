"""The time of each block's training step: `pytest benchmarks --benchmark-only`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import attnzoo
from attnzoo.registry import find
from attnzoo.testing.inputs import call, leaves, make_inputs, tensors


@pytest.mark.parametrize("name", attnzoo.names())
def test_training_step(name: str, benchmark: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    entry = find(name)
    block = attnzoo.build(name, **entry.example)
    inputs = leaves(make_inputs(entry, dict(entry.example), entry.input_size))

    def step() -> None:
        outputs = [t for t in tensors(call(block, inputs)) if t.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(t) for t in outputs])

    benchmark(step)
