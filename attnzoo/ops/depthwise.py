"""Depthwise convolution that keeps the size, with a quick weight gradient on the CPU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autograd import CustomGradient


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Each channel of (B, C, H, W) convolved with its own odd kernel, zeros around the map."""
    y: Tensor = _pair(x, weight, bias)
    return y


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=_margin(weight), groups=x.shape[1])


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    return _plain(x, weight, bias), ()


def _backward(
    needs: Sequence[bool], args: Sequence[Tensor], saved: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    x, weight, bias = args
    # The CPU library is quick with 3 x 3 and up to ten times slower than this with larger kernels.
    own = x.device.type == "cpu" and x.dtype.itemsize >= 4 and weight[0].numel() > 9 and len(x) > 0
    by_torch = (needs[0], needs[1] and not own, needs[2])
    dx, dw, db = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None if bias is None else bias.shape,
        (1, 1),
        _margin(weight),
        (1, 1),
        False,
        (0, 0),
        x.shape[1],
        by_torch,
    )
    if needs[1] and own:
        dw = _weight_gradient(x, weight, grad)
    return dx, dw, db


def _weight_gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """Each map of the batch convolved with its own gradient map as the kernel."""
    b, c, h, w = x.shape
    maps = F.conv2d(
        x.reshape(1, b * c, h, w),
        grad.reshape(b * c, 1, h, w),
        padding=_margin(weight),
        groups=b * c,
    )
    return maps.view(b, *weight.shape).sum(0)


def _margin(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


_pair = CustomGradient(_plain, _forward, _backward)
