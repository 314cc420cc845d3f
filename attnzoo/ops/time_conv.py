"""Convolution of channels-last sequences along time, without transposing them."""

import torch
from torch import Tensor, nn

from .folding import is_plain


def time_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """(N, T, C) to (N, T', C'), unpadded, with a weight (C', C, k) as `nn.Conv1d` has it.

    In memory a sequence (N, T, C) is a channels-last image (N, C, 1, T), which the two-dimensional
    convolution reads without a copy; the one-dimensional one would make two.
    """
    image = x.mT.unsqueeze(2)  # N C 1 T
    y = torch.conv2d(image, weight.unsqueeze(2), bias, (1, stride), dilation=(1, dilation))
    return y.squeeze(2).mT  # N T' C'


def apply_in_time(conv: nn.Module, x: Tensor) -> Tensor:
    """(N, T, C) to (N, T', C') by an unpadded `nn.Conv1d`, which is called unless it is plain."""
    if not (isinstance(conv, nn.Conv1d) and is_plain(conv, nn.Conv1d, padding=(0,), groups=1)):
        y: Tensor = conv(x.mT).mT
        return y
    stride, dilation = conv.stride[0], conv.dilation[0]
    return time_conv(x, conv.weight, conv.bias, stride=stride, dilation=dilation)
