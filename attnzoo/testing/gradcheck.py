"""Compares gradients with finite differences, for blocks without a reference implementation."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..reference.closeness import FLOOR
from ..registry import Inputs
from .inputs import arguments, leaves, tensors

STEP = 1e-6  # of a leaf's own size
LIMIT = 1e-3  # of a gradient's size


def errors(block: nn.Module, inputs: Inputs, grads: list[Tensor]) -> Iterator[tuple[str, float]]:
    """Name and relative error of each leaf's gradient, in train mode; the block is in float64.

    The function that is differentiated is the sum of the outputs weighted by `grads`, called the
    height. For each leaf, its central difference along a direction, the unit gradient plus a random
    unit vector, is compared with the directional derivative that the gradient predicts. A leaf
    without a gradient must not affect the height.
    """
    mine = leaves(inputs, torch.float64, "cpu")
    positional, keywords = arguments(block.train(), mine)
    weights = [g.to("cpu", torch.float64) for g in grads]

    def outputs() -> list[Tensor]:
        torch.manual_seed(2)  # the same dropout masks in every call
        return list(tensors(block(*positional, **keywords)))

    parts: dict[str, Tensor] = {
        f"input {i}": t for i, t in enumerate(tensors(mine)) if t.requires_grad
    }
    parts |= {f"parameter {key}": p for key, p in block.named_parameters()}
    first = outputs()
    active = [i for i, t in enumerate(first) if t.requires_grad]
    found = derived(first, list(parts.values()), weights)

    @torch.no_grad()
    def height(part: Tensor, way: Tensor, reach: float) -> float:
        part.add_(way, alpha=reach)
        now = outputs()
        part.add_(way, alpha=-reach)
        return sum(float((now[i] * w).sum()) for i, w in zip(active, weights, strict=True))

    largest = max((float(g.norm()) for g in found if g is not None), default=0.0)
    for (name, part), grad in zip(parts.items(), found, strict=True):
        slope = torch.zeros_like(part) if grad is None else grad
        way = _unit(slope) + _unit(torch.randn(part.shape, dtype=torch.float64))
        reach = STEP * max(1.0, float(part.detach().norm()))
        rise = (height(part, way, reach) - height(part, way, -reach)) / (2 * reach)
        size = max(float(slope.norm()), FLOOR * largest, STEP)
        yield name, abs(rise - float((slope * way).sum())) / size


def derived(output: Any, wanted: list[Tensor], grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of the given leaves; None for a leaf that the output does not depend on."""
    results = [t for t in tensors(output) if t.requires_grad]
    if not results:
        return (None,) * len(wanted)
    return torch.autograd.grad(results, wanted, grads, allow_unused=True)


def _unit(tensor: Tensor) -> Tensor:
    return normalize(tensor.detach().flatten(), dim=0).view_as(tensor)
