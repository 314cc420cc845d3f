"""The weighted sum of selective kernels: one tensor of a branch's size for each branch."""

from typing import Any

import torch
from torch import Tensor

from .custom_gradient import Pair


def _select(gates: Tensor, *features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = features[0] * gates[:, 0]
    for i, u in enumerate(features[1:], 1):
        y.addcmul_(u, gates[:, i])
    return y, ()


def _select_backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor | None, ...]:
    gates, *features = args
    if features[0].is_contiguous(memory_format=torch.channels_last):
        dy = dy.contiguous(memory_format=torch.channels_last)
    d_gates, d_features = [], []
    for gate, u, need in zip(gates.unbind(1), features, needs[1:], strict=True):
        work = u * dy
        d_gates.append(work.sum((2, 3), keepdim=True))
        d_features.append(torch.mul(dy, gate, out=work) if need else None)
    return torch.stack(d_gates, 1), *d_features


pair = Pair(_select, _select_backward)
