"""DIA's pooling over channels and its gate, in fewer passes over memory.

`pool` returns x along with its results, for `gate` to use. The backward pass of `pool` can then
add all three gradients of x at once.
"""

from typing import Any

import torch
from torch import Tensor

from .custom_gradient import Pair

MIN_NUMEL = 2**17


def _pool(x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    top, index = x.max(1, keepdim=True)
    return (x, x.mean(1, keepdim=True), top), (index,)


def _pool_backward(
    needs: tuple[bool, ...],
    args: tuple[Any, ...],
    saved: tuple[Tensor, ...],
    dx: Tensor,
    d_mean: Tensor,
    d_top: Tensor,
) -> tuple[Tensor]:
    total = torch.add(dx, d_mean, alpha=1 / dx.shape[1])
    return (total.scatter_add_(1, saved[0], d_top),)


def _gate(x: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return (x * mask).relu_(), ()


def _gate_backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor | None, ...]:
    """The mask is positive: the sign of x gives the ReLU's mask, and the output is not saved."""
    x, mask = args
    passed = torch.ops.aten.threshold_backward(dy, x, 0)
    d_mask = (passed * x).sum(1, keepdim=True) if needs[1] else None
    return passed.mul_(mask) if needs[0] else None, d_mask


pool = Pair(_pool, _pool_backward, MIN_NUMEL)
gate = Pair(_gate, _gate_backward, MIN_NUMEL)
