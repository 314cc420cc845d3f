"""Position attention of DANet: every pixel gathers from all pixels that resemble it.

Paper: Dual Attention Network for Scene Segmentation, Fu, Liu, Tian, Li, Bao, Fang, Lu, CVPR 2019,
    arXiv 1809.02983.
Code: junfu1115/DANet @b0a0fa0, `encoding/nn/da_att.py`, class `PAM_Module`.
Math: y = gamma * V softmax(Q^T K)^T + x over the N = H W pixels; Q, K, V = 1x1 convolutions of x
    (`query_conv`, `key_conv`: c // reduction channels; `value_conv`: c). The softmax runs over the
    keys; there is no 1 / sqrt(d).
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: paper and code agree. Ours never keeps the N x N attention for the backward pass, computes
    energies of half-precision inputs in float32 (theirs can overflow), and refuses c < reduction.
Cost: with r = c // reduction, parameters 2 r (c + 1) + c (c + 1) + 1;
    MACs N (2 c r + c^2) + N^2 (r + c).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import check
from ..ops.by_hand import ByHand
from ..ops.precision import autocast_dtype, wide_dtype
from ..registry import Cost, Extent, register


def cost(at: Extent, c: int, reduction: int) -> Cost:
    r, n = c // reduction, at.height * at.width
    return Cost(
        params=2 * r * (c + 1) + c * (c + 1) + 1,
        macs=n * (2 * c * r + c * c) + n * n * (r + c),
    )


@register(
    "danet_position",
    layout="image",
    family="spatial",
    example={"c": 64},
    cost=cost,
    upstream={},  # the authors' names are ours
)
class PAM(nn.Module):
    """Position attention module on (B, C, H, W), with a residual gated by `gamma` (0 at first).

    Args:
        c: channels in and out.
        reduction: queries and keys have `c // reduction` channels.

    Raises:
        ValueError: `c < reduction`, which would leave queries of width zero.
    """

    def __init__(self, c: int, *, reduction: int = 8) -> None:
        super().__init__()
        width = check.reduced(c, reduction)
        self.c = c
        self.query_conv = nn.Conv2d(c, width, 1)
        self.key_conv = nn.Conv2d(c, width, 1)
        self.value_conv = nn.Conv2d(c, c, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.gamma)
        convs = (self.query_conv, self.key_conv, self.value_conv)
        weight = torch.cat([conv.weight for conv in convs]).flatten(1)  # 2r+C C
        bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
        pixels, low = x.flatten(2), autocast_dtype(x)  # B C N
        if low is None:
            y: Tensor = _attend(pixels, self.gamma, weight, bias, x.dtype)
        else:  # autocast's dtype by hand: no N x N map is kept, and the residual is exact
            with torch.autocast(x.device.type, enabled=False):
                y = _attend(pixels, *(t.to(x.dtype) for t in (self.gamma, weight, bias)), low)
        return y.reshape(x.shape)

    def extra_repr(self) -> str:
        return f"c={self.c}"


def _project(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries and keys, in float32 at least, and values, in `dtype`."""
    c, r = x.shape[1], (weight.shape[0] - x.shape[1]) // 2
    qkv = F.conv1d(x.to(dtype), weight.to(dtype)[:, :, None], bias.to(dtype))
    q, k, v = qkv.split_with_sizes((r, r, c), 1)
    return q.to(wide_dtype(dtype)), k.to(wide_dtype(dtype)), v


def _plain(x: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """gamma * V softmax(Q^T K)^T + x on (B, C, N); the matrix products of values in `dtype`."""
    q, k, v = _project(x, weight, bias, dtype)
    attention = (q.mT @ k).softmax(-1).to(dtype)  # B N N
    return gamma * (v @ attention.mT).to(x.dtype) + x


def _chunks(x: Tensor) -> list[slice]:
    """Queries in runs, such that a run's rows of the attention stay in a cache."""
    b, _, n = x.shape
    step = max(64, (1 << 20) // max(1, b * n))
    return [slice(i, i + step) for i in range(0, n, step)]


def _forward(
    x: Tensor, gamma: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, ...]]:
    q, k, v = _project(x, weight, bias, dtype)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    for run in _chunks(x):
        attention = (q[:, :, run].mT @ k).softmax(-1).to(dtype)
        y[:, :, run] = v @ attention.mT
    return y.mul_(gamma).add_(x), ()


def _backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Softmax rows again, chunk by chunk; gamma multiplies the sums instead of their terms."""
    x, gamma, weight, bias, dtype = args
    q, k, v = _project(x, weight, bias, dtype)
    r, low, high = q.shape[1], grad.to(dtype), q.dtype
    sums = torch.zeros((x.shape[0], weight.shape[0], x.shape[2]), dtype=high, device=x.device)
    dq, dk, dv = sums.split_with_sizes((r, r, x.shape[1]), 1)
    dgamma = torch.zeros((), dtype=high, device=x.device)
    for run in _chunks(x):
        attention = (q[:, :, run].mT @ k).softmax(-1)  # B n N
        dv += low[:, :, run] @ attention.to(dtype)
        slope = (low[:, :, run].mT @ v).to(high)
        mean = (attention * slope).sum(-1, keepdim=True)
        dgamma += mean.sum()
        slope.sub_(mean).mul_(attention)
        dq[:, :, run] = k @ slope.mT
        dk += q[:, :, run] @ slope
    sums = sums.mul_(gamma).to(x.dtype)
    dx = torch.baddbmm(grad, weight.mT.expand(len(x), -1, -1), sums)
    dweight = (sums @ x.mT).sum(0)
    return dx, dgamma.to(x.dtype).expand(1), dweight, sums.sum((0, 2)), None


_attend = ByHand(_plain, _forward, _backward)
