"""Softmax over few numbers, at which torch's kernel for the CPU is slow."""

import torch
from torch import Tensor

_VECTORIZED = 16  # numbers from which torch's kernel over the last axis is vectorized


def is_slow(x: Tensor, count: int) -> bool:
    """Whether torch's softmax over the last axis of `count` numbers is slow on the device of x."""
    compiled = torch.compiler.is_compiling()  # into a kernel of its own
    return not compiled and count < _VECTORIZED and x.device.type == "cpu"


def softmax_of_few(x: Tensor) -> Tensor:
    """`x.softmax(-1)` of (..., N, M), for small M along the first axis of a transposed copy."""
    if not is_slow(x, x.shape[-1]):
        return x.softmax(-1)
    rows = x.flatten(0, -2)  # M numbers each
    return rows.t().contiguous().softmax(0).t().view_as(x)
