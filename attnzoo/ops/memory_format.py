"""The memory format of images."""

import torch
from torch import Tensor


def match_memory_format(y: Tensor, x: Tensor) -> Tensor:
    """`y`, converted to channels_last if the image `x` is; both are (B, C, H, W)."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return y
    return y.contiguous(memory_format=torch.channels_last)


def contiguous_gradient(y: Tensor) -> Tensor:
    """`y`, the result of a BatchNorm on (B, C, H, W), whose gradient reaches it contiguous.

    Where H or W is 1, strides do not determine the memory format, and torch (2.6 to 2.15) computes
    wrong gradients of BatchNorm from some of them. The backward pass of a selection of all channels
    makes the gradient anew. A compiled graph is left as it is: it would be fixed to one size.
    """
    if torch.compiler.is_compiling() or 1 not in y.shape[2:]:
        return y
    return y.index_select(1, torch.arange(y.shape[1], device=y.device))
