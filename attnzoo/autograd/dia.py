"""DIA's gate, which keeps nothing for the backward pass but its arguments."""

from typing import Any

import torch
from torch import Tensor

from .custom_gradient import Pair


def _gate(x: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return (x * mask).relu_(), ()


def _gate_backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor | None, ...]:
    """A mask is positive, so the sign of x tells where the ReLU acted: the output is not kept."""
    x, mask = args
    passed = torch.ops.aten.threshold_backward(dy, x, 0)
    d_mask = (passed * x).sum(1, keepdim=True) if needs[1] else None
    return passed.mul_(mask) if needs[0] else None, d_mask


pair = Pair(_gate, _gate_backward)
