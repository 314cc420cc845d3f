"""Depthwise convolution with a fast gradient of its weight on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import depthwise as reference
from .custom_gradient import Pair, custom_gradient


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    return reference.depthwise(x, weight, bias), ()


def _backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor | None, ...]:
    x, weight, bias = (*args, None)[:3]
    # torch's CPU kernel is fast for 3 x 3, but up to ten times slower than this for larger ones.
    own = x.device.type == "cpu" and x.dtype.itemsize >= 4 and weight[0].numel() > 9 and len(x) > 0
    shape = None if bias is None else bias.shape
    margin = weight.shape[2] // 2, weight.shape[3] // 2
    by_torch = (needs[0], needs[1] and not own, bias is not None and needs[2])
    dx, dw, db = torch.ops.aten.convolution_backward(
        dy, x, weight, shape, (1, 1), margin, (1, 1), False, (0, 0), x.shape[1], by_torch
    )
    if needs[1] and own:
        dw = _weight_gradient(x, weight, dy)
    return (dx, dw, db)[: len(args)]


def _weight_gradient(x: Tensor, weight: Tensor, dy: Tensor) -> Tensor:
    """Each map of the batch convolved with its own gradient map as the kernel."""
    b, c, h, w = x.shape
    maps = F.conv2d(
        x.reshape(1, b * c, h, w),
        dy.reshape(b * c, 1, h, w),
        padding=(weight.shape[2] // 2, weight.shape[3] // 2),
        groups=b * c,
    )
    return maps.view(b, *weight.shape).sum(0)


depthwise = custom_gradient(reference.depthwise, Pair(_forward, _backward))
