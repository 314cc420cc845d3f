"""Asserts that results agree to half of the digits of their dtype."""

from typing import Any

import torch

from ..reference.closeness import half_the_digits, relative_errors
from ..validation.tensors import tensors


def assert_close(found: Any, wanted: Any, dtype: torch.dtype | None = None) -> None:
    """Assert that all tensors of two structures agree in shape and in every element.

    Args:
        found: nested lists, tuples and dicts of tensors.
        wanted: the expected tensors, in the same structure.
        dtype: the least precise dtype used in the computation of either side, if it is not that of
            the tensors themselves.

    Raises AssertionError with the tensor that is off, its error and the limit.
    """
    ours, theirs = list(tensors(found)), list(tensors(wanted))
    if len(ours) != len(theirs):
        raise AssertionError(f"{len(ours)} tensors instead of {len(theirs)}")
    names = [f"tensor {i}" for i in range(len(ours))]
    for name, a, b in zip(names, ours, theirs, strict=True):
        if a.shape != b.shape:
            raise AssertionError(f"{name}: shape {tuple(a.shape)} instead of {tuple(b.shape)}")
    by_name = [dict(zip(names, side, strict=True)) for side in (ours, theirs)]
    for name, error in relative_errors(by_name[0], by_name[1]).items():
        dtypes = [t[name].dtype for t in by_name if t[name].is_floating_point()]
        precisions = [half_the_digits(d) for d in ([dtype] if dtype else dtypes)]
        limit = max(precisions, default=0.0)
        if not error <= limit:
            raise AssertionError(f"{name} is off by {error:.3e}, over {limit:.3e}")
