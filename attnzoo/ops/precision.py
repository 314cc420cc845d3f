"""Which dtype to compute in: under autocast, and where half precision is not enough."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .._torch import autocast_dtype as autocast_dtype
from .._torch import autocast_enabled


def upcast_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 for the halves: for sums that overflow or lose digits in them."""
    return torch.promote_types(dtype, torch.float32)


def upcast(x: Tensor) -> Tensor:
    """`x` itself, or its float32 copy where it is of half precision."""
    return x.to(upcast_dtype(x.dtype))


def autocast_disabled(x: Tensor) -> AbstractContextManager[object]:
    """A context in which matrix products keep the dtype of `x`, whatever autocast says."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if autocast_enabled(kind) else nullcontext()
