"""Autocast, looked at in one place: some devices have none and raise when asked."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def active(like: Tensor) -> bool:
    """Whether operations on the device of `like` are cast at the moment."""
    return like.device.type != "meta" and torch.is_autocast_enabled(like.device.type)


def off(like: Tensor) -> AbstractContextManager[None]:
    """Within it nothing is cast on the device of `like`: for sums that need their dtype."""
    return torch.autocast(like.device.type, enabled=False) if active(like) else nullcontext()
