"""Softmax attention by torch's fused kernels, which save no (N, M) matrix for the backward pass.

The kernels have no second derivative; `custom_gradient` computes it with the reference form. The
backward pass runs the forward kernel again, since a custom gradient cannot keep its graph.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .._torch import is_exporting
from ..ops import attention as reference
from ..ops.precision import autocast_disabled
from .custom_gradient import Pair, custom_gradient


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`ops.attention.attention` in the dtype of its arguments, by a fused kernel if one exists."""
    with autocast_disabled(q):
        if torch.compiler.is_compiling() and not is_exporting():
            return scaled_dot_product_attention(q, k, v)  # compiled: first derivatives only
        return _attention(q, k, v)


def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return scaled_dot_product_attention(q, k, v), ()


def _backward(
    needs: Sequence[bool], args: Sequence[Any], saved: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(need) for t, need in zip(args, needs, strict=True)]
        y = scaled_dot_product_attention(*leaves)
    grads = iter(torch.autograd.grad(y, [t for t in leaves if t.requires_grad], grad))
    return tuple(next(grads) if need else None for need in needs)


_attention = custom_gradient(reference.attention, Pair(_forward, _backward, min_numel=2**16))
