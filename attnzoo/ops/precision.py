"""Sums in float32 whatever the dtype around them, under autocast too."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` itself, or its float32 copy where it is of half precision."""
    return x.float() if x.dtype.itemsize < 4 else x


def autocasting(x: Tensor) -> bool:
    """Whether autocast acts on `x`; some devices, such as "meta", have none."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def as_given(x: Tensor) -> AbstractContextManager[object]:
    """A context in which matrix products keep the dtype of `x`, whatever autocast says."""
    return torch.autocast(x.device.type, enabled=False) if autocasting(x) else nullcontext()
