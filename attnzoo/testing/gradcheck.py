"""Compares gradients with finite differences, for blocks without a reference implementation."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .. import _torch
from ..reference.closeness import FLOOR
from ..registry import Inputs
from .inputs import arguments, leaves, tensors

STEP = 1e-6  # relative to the size of a leaf
LIMIT = 1e-3  # relative to the size of a gradient
_ZERO = torch.zeros((), dtype=torch.float64)


def errors(
    block: nn.Module, inputs: Inputs, grads: list[Tensor], *, order: int = 1
) -> Iterator[tuple[str, float]]:
    """Name and relative error of each leaf's gradient, in train mode; the block is in float64.

    The function that is differentiated, the objective, is the sum of the outputs weighted by
    `grads` or, for `order=2`, the sum of its gradients weighted by random unit vectors. For each
    leaf, the objective's central difference along a direction, the unit gradient plus a random
    unit vector, is compared with the directional derivative that the gradient predicts. A leaf
    without a gradient must not affect the objective.
    """
    inputs = leaves(inputs, torch.float64, "cpu")
    positional, keywords = arguments(block.train(), inputs)
    weights = [g.to("cpu", torch.float64) for g in grads]
    parts: dict[str, Tensor] = {
        f"input {i}": t for i, t in enumerate(tensors(inputs)) if t.requires_grad
    }
    parts |= {f"parameter {key}": p for key, p in block.named_parameters()}
    wanted = list(parts.values())
    along = [_unit(torch.randn(part.shape, dtype=torch.float64)) for part in wanted]

    def outputs() -> list[Tensor]:
        torch.manual_seed(2)  # the same dropout masks in every call
        return list(tensors(block(*positional, **keywords)))

    active = [i for i, t in enumerate(outputs()) if t.requires_grad]

    def objective() -> Tensor:
        found = outputs()
        total = sum(((found[i] * w).sum() for i, w in zip(active, weights, strict=True)), _ZERO)
        if order == 1 or not total.requires_grad:
            return total
        firsts = torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True)
        pairs = zip(firsts, along, strict=True)
        return sum(((g * v).sum() for g, v in pairs if g is not None), _ZERO)

    def moved(part: Tensor, direction: Tensor, step: float) -> float:
        with torch.no_grad():
            part.add_(direction, alpha=step)
        with torch.set_grad_enabled(order > 1):
            value = float(objective().detach())
        with torch.no_grad():
            part.add_(direction, alpha=-step)
        return value

    start = objective()
    gradients: Sequence[Tensor | None] = [None] * len(wanted)
    if start.requires_grad:
        gradients = torch.autograd.grad(start, wanted, allow_unused=True)
    largest = max((float(g.norm()) for g in gradients if g is not None), default=0.0)
    for (name, part), gradient in zip(parts.items(), gradients, strict=True):
        grad = torch.zeros_like(part) if gradient is None else gradient
        direction = _unit(grad) + _unit(torch.randn(part.shape, dtype=torch.float64))
        step = STEP * max(1.0, float(part.detach().norm()))
        difference = moved(part, direction, step) - moved(part, direction, -step)
        size = max(float(grad.norm()), FLOOR * largest, STEP)
        yield name, abs(difference / (2 * step) - float((grad * direction).sum())) / size


class Float64Throughout(_torch.TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves float64 tensors as they are where a module casts them to a shorter dtype.

    Modules that compute a norm or a softmax in float32 do so whatever the dtype of the input; its
    rounding would drown finite differences.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        short = kwargs.get("dtype") in (torch.float32, torch.float16, torch.bfloat16)
        if operator is _torch.cast_operator and short:
            kwargs["dtype"] = torch.float64 if args[0].dtype == torch.float64 else kwargs["dtype"]
        return operator(*args, **kwargs)


def derived(output: Any, wanted: list[Tensor], grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients of the given leaves; None for a leaf that the output does not depend on."""
    results = [t for t in tensors(output) if t.requires_grad]
    if not results:
        return (None,) * len(wanted)
    return torch.autograd.grad(results, wanted, grads, allow_unused=True)


def _unit(tensor: Tensor) -> Tensor:
    return normalize(tensor.detach().flatten(), dim=0).view_as(tensor)
