"""Which dtype to compute in: under autocast, and where half precision is not enough."""

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes matrix products of `x` in; None where it is off."""
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return None
    return torch.get_autocast_dtype(kind)


def wide(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 for the halves: for sums that overflow or drown in half precision."""
    return torch.promote_types(dtype, torch.float32)
