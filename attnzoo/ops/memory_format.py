"""The order of an image's numbers in memory."""

import torch
from torch import Tensor


def match_memory_format(y: Tensor, x: Tensor) -> Tensor:
    """`y`, channels last where the image `x` is; both (B, C, H, W)."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return y
    return y.contiguous(memory_format=torch.channels_last)
