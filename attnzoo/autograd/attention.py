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
from ..ops import softmax
from ..ops.precision import autocast_disabled
from .custom_gradient import Pair, custom_gradient


def attention(
    q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None = None, causal: bool = False
) -> Tensor:
    """`ops.attention.attention`, in the dtype of its arguments, by a fused kernel where it can."""
    with autocast_disabled(q):
        if torch.compiler.is_compiling() and not is_exporting():
            return _fused(q, k, v, ignored, causal)  # compiled graphs are derived once
        if softmax.is_slow(q, k.shape[-2]):  # in fused kernels, too
            return reference.attention(q, k, v, ignored, causal)
        return _attention(q, k, v, ignored, causal)


def _fused(q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None, causal: bool) -> Tensor:
    taken = None if ignored is None else ~ignored
    return scaled_dot_product_attention(q, k, v, attn_mask=taken, is_causal=causal)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, ignored: Tensor | None, causal: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    return _fused(q, k, v, ignored, causal), ()


def _backward(
    needs: Sequence[bool], args: Sequence[Any], saved: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_(n) for t, n in zip(args[:3], needs[:3], strict=True)]
        y = _fused(*leaves, *args[3:])
    found = iter(torch.autograd.grad(y, [t for t in leaves if t.requires_grad], grad))
    return tuple(next(found) if need else None for need in needs)


_attention = custom_gradient(reference.attention, Pair(_forward, _backward, min_numel=2**16))
