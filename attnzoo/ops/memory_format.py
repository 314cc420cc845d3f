"""The memory format of images."""

import torch
from torch import Tensor


def match_memory_format(y: Tensor, x: Tensor) -> Tensor:
    """`y`, converted to channels_last if the image `x` is; both are (B, C, H, W)."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return y
    return y.contiguous(memory_format=torch.channels_last)
