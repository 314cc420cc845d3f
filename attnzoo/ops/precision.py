"""Which dtype to compute in: under autocast, and where half precision is not enough."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 for the halves: for sums that overflow or drown in half precision."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """`x` itself, or its float32 copy where it is of half precision."""
    return x.to(wide_dtype(x.dtype))


def autocasting(x: Tensor) -> bool:
    """Whether autocast acts on `x`; some devices, such as "meta", have none."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes matrix products of `x` in; None where it is off."""
    return torch.get_autocast_dtype(x.device.type) if autocasting(x) else None


def as_given(x: Tensor) -> AbstractContextManager[object]:
    """A context in which matrix products keep the dtype of `x`, whatever autocast says."""
    return torch.autocast(x.device.type, enabled=False) if autocasting(x) else nullcontext()
