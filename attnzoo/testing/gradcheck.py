"""Compares gradients with finite differences, for blocks without a reference implementation."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..reference.closeness import FLOOR
from ..registry import Inputs
from .inputs import arguments, leaves, tensors

STEP = 1e-6  # relative to the size of a leaf
LIMIT = 1e-3  # relative to the size of a gradient


def errors(block: nn.Module, inputs: Inputs, grads: list[Tensor]) -> Iterator[tuple[str, float]]:
    """Name and relative error of each leaf's gradient, in train mode; the block is in float64.

    The function that is differentiated, the objective, is the sum of the outputs weighted by
    `grads`. For each leaf, its central difference along a direction, the unit gradient plus a
    random unit vector, is compared with the directional derivative that the gradient predicts. A
    leaf without a gradient must not affect the objective.
    """
    inputs = leaves(inputs, torch.float64, "cpu")
    positional, keywords = arguments(block.train(), inputs)
    weights = [g.to("cpu", torch.float64) for g in grads]

    def outputs() -> list[Tensor]:
        torch.manual_seed(2)  # the same dropout masks in every call
        return list(tensors(block(*positional, **keywords)))

    parts: dict[str, Tensor] = {
        f"input {i}": t for i, t in enumerate(tensors(inputs)) if t.requires_grad
    }
    parts |= {f"parameter {key}": p for key, p in block.named_parameters()}
    first = outputs()
    active = [i for i, t in enumerate(first) if t.requires_grad]
    gradients = derived(first, list(parts.values()), weights)

    @torch.no_grad()
    def objective(part: Tensor, direction: Tensor, step: float) -> float:
        part.add_(direction, alpha=step)
        moved = outputs()
        part.add_(direction, alpha=-step)
        return sum(float((moved[i] * w).sum()) for i, w in zip(active, weights, strict=True))

    largest = max((float(g.norm()) for g in gradients if g is not None), default=0.0)
    for (name, part), gradient in zip(parts.items(), gradients, strict=True):
        grad = torch.zeros_like(part) if gradient is None else gradient
        direction = _unit(grad) + _unit(torch.randn(part.shape, dtype=torch.float64))
        step = STEP * max(1.0, float(part.detach().norm()))
        difference = objective(part, direction, step) - objective(part, direction, -step)
        size = max(float(grad.norm()), FLOOR * largest, STEP)
        yield name, abs(difference / (2 * step) - float((grad * direction).sum())) / size


def derived(output: Any, wanted: list[Tensor], grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of the given leaves; None for a leaf that the output does not depend on."""
    results = [t for t in tensors(output) if t.requires_grad]
    if not results:
        return (None,) * len(wanted)
    return torch.autograd.grad(results, wanted, grads, allow_unused=True)


def _unit(tensor: Tensor) -> Tensor:
    return normalize(tensor.detach().flatten(), dim=0).view_as(tensor)
