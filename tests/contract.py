"""What every suite over the registry needs: a block in some state, its inputs, one step."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.registry import Entry, Inputs, find
from attnzoo.testing.inputs import call, make_inputs, samples, tensors

from tolerances import assert_close

blocks = pytest.mark.every_block  # late, so that a user's blocks get the tests too

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


def randomize_parameters(block: nn.Module) -> None:
    """Move every parameter off its initial value, so that no gate hides behind a zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (0.1 * noise).to(parameter)


def wanting_grad(inputs: Inputs) -> Inputs:
    """Copies of the inputs as leaves that want a gradient, where they can."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(tensor.is_floating_point())

    return each(inputs, leaf)


def step(block: nn.Module, inputs: Inputs, run: Any = None) -> dict[str, Any]:
    """Outputs and every gradient of one training step; `run` stands in for the block's call."""
    leaves = wanting_grad(inputs)
    block.zero_grad()
    outputs = list(tensors(call(block, leaves) if run is None else run(leaves)))
    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    wanting = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    torch.autograd.backward([o for o, _ in wanting], [g for _, g in wanting])
    return {
        "outputs": [o.detach() for o in outputs],
        "inputs": [t.grad for t in tensors(leaves) if t.grad is not None],
        "parameters": {k: p.grad for k, p in block.named_parameters() if p.grad is not None},
    }


def assert_steps_equal(block: nn.Module, inputs: Inputs, run: Any) -> None:
    """`run` in the block's stead gives its outputs, gradients and, in train mode, buffers."""
    state = {k: v.clone() for k, v in block.state_dict().items()}
    found, after = step(block, inputs), {k: v.clone() for k, v in block.named_buffers()}
    block.load_state_dict(state)
    assert_close(found, step(block, inputs, run))
    assert_close(after, dict(block.named_buffers()))


def each(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Inputs of the same names with every tensor changed."""
    return {
        key: [change(t) for t in value] if isinstance(value, list) else change(value)
        for key, value in inputs.items()
    }


def first(block: nn.Module, inputs: Inputs, count: int) -> Inputs:
    """The first `count` samples of every input."""
    return samples(block, inputs, slice(count))


def call_like(block: nn.Module, stand_in: Callable[..., Any], inputs: Inputs) -> Any:
    """Call `stand_in` with the arguments arranged as `block.forward` wants them."""
    positional, keywords = arranged(block, inputs)
    return stand_in(*positional, **keywords)


def arranged(block: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the block's forward."""
    kinds = inspect.signature(block.forward).parameters
    keywords = {k: v for k, v in inputs.items() if kinds[k].kind is inspect.Parameter.KEYWORD_ONLY}
    return tuple(v for k, v in inputs.items() if k not in keywords), keywords
