"""The only tolerances of the suite: half of a dtype's digits, of the largest value of a tensor."""

import math
from typing import Any

import torch
from torch import Tensor

from attnzoo.testing.inputs import tensors


def tolerance(dtype: torch.dtype) -> float:
    """What two orders of the same sums may differ by, relative to a tensor's largest value."""
    return math.sqrt(torch.finfo(dtype).eps)


def assert_close(found: Any, wanted: Any, dtype: torch.dtype | None = None) -> None:
    """Every tensor of two equal nests agrees, compared whole.

    `dtype` is the least precise one that either side was computed in, where the tensors
    themselves no longer tell. A tensor smaller than a thousandth of the largest of its nest is
    held to that size: a gradient that is zero but for rounding has no digits of its own.
    """
    ours, theirs = list(tensors(found)), list(tensors(wanted))
    if len(ours) != len(theirs):
        raise AssertionError(f"{len(ours)} tensors instead of {len(theirs)}")
    largest = max((_size(t) for t in theirs), default=0.0)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a.shape != b.shape:
            raise AssertionError(f"tensor {i}: shape {tuple(a.shape)} instead of {tuple(b.shape)}")
        if not a.is_floating_point():
            assert torch.equal(a, b), f"tensor {i} differs"
            continue
        kind = dtype or min((a.dtype, b.dtype), key=lambda d: -torch.finfo(d).eps)
        limit = tolerance(kind) * max(_size(b), 1e-3 * largest, torch.finfo(kind).tiny)
        error = _size(a.double() - b.double())
        assert error <= limit, f"tensor {i} is off by {error:.3e}, over {limit:.3e}"


def _size(tensor: Tensor) -> float:
    """The largest magnitude; infinite where the tensor is not finite, so that it never passes."""
    if not tensor.numel():
        return 0.0
    size = float(tensor.detach().double().abs().max())
    return size if math.isfinite(size) else math.inf
