"""One training step of a module: outputs and every gradient, to be compared with another's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Inputs
from .closeness import assert_close
from .inputs import arguments, call, leaves, tensors

Run = Callable[[Inputs], Any]


def step(block: nn.Module, inputs: Inputs, run: Run | None = None) -> dict[str, Any]:
    """Outputs and every gradient of one training step; `run` stands in for the block's call."""
    points = leaves(inputs)
    block.zero_grad()
    outputs = list(tensors(call(block, points) if run is None else run(points)))
    generator = torch.Generator().manual_seed(2)
    grads = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs]
    wanting = [(o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad]
    torch.autograd.backward([o for o, _ in wanting], [g for _, g in wanting])
    return {
        "outputs": [o.detach() for o in outputs],
        "inputs": [t.grad for t in tensors(points) if t.grad is not None],
        "parameters": {k: p.grad for k, p in block.named_parameters() if p.grad is not None},
    }


def assert_steps_equal(block: nn.Module, inputs: Inputs, run: Run) -> None:
    """`run` in the block's stead gives its outputs, gradients and, in train mode, buffers."""
    state = {k: v.clone() for k, v in block.state_dict().items()}
    found, after = step(block, inputs), {k: v.clone() for k, v in block.named_buffers()}
    block.load_state_dict(state)
    assert_close(found, step(block, inputs, run))
    assert_close(after, dict(block.named_buffers()))


def assert_same(found: Any, wanted: Any) -> None:
    """Every tensor of two equal nests agrees bitwise."""
    for i, (a, b) in enumerate(zip(tensors(found), tensors(wanted), strict=True)):
        if not torch.equal(a.detach(), b.detach()):
            raise AssertionError(f"tensor {i} is not bitwise the same")


def call_like(block: nn.Module, stand_in: Callable[..., Any], inputs: Inputs) -> Any:
    """Call `stand_in` with the arguments arranged as `block.forward` wants them."""
    positional, keywords = arguments(block, inputs)
    return stand_in(*positional, **keywords)


def finite(*values: Any) -> bool:
    """Whether every tensor of the nests is."""
    return all(bool(t.isfinite().all()) for t in tensors(*values))


def named_inputs(inputs: Inputs) -> dict[str, Tensor]:
    """The tensors of the inputs, by the argument's name and the place in its list."""
    found: dict[str, Tensor] = {}
    for key, value in inputs.items():
        items = list(tensors(value))
        found |= {f"{key}[{i}]" if len(items) > 1 else key: t for i, t in enumerate(items)}
    return found
