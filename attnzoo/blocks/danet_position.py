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

from ..autograd import CustomGradient
from ..ops import memory_format
from ..ops.precision import autocast_dtype, upcast
from ..registry import Cost, InputSize, KnownVariant, register
from ..validation import check


def cost(at: InputSize, c: int, reduction: int) -> Cost:
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
    known_variants=(
        KnownVariant(
            whose="changzy00's PAM",
            keys=("b.weight", "c.weight", "d.weight", "alpha"),
            computes="has queries and keys of all channels",
        ),
    ),
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
        weights: list[Any] = [
            self.gamma,
            *(self.query_conv.weight, self.query_conv.bias),
            *(self.key_conv.weight, self.key_conv.bias),
            *(self.value_conv.weight, self.value_conv.bias),
        ]
        low = autocast_dtype(x)
        if low is None:
            y: Tensor = _by_hand(x, x.dtype, *weights)
        else:  # autocast's dtype by hand: no N x N map is kept, and the residual is exact
            with torch.autocast(x.device.type, enabled=False):
                y = _by_hand(x, low, *(w.to(x.dtype) for w in weights))
        return memory_format.match_memory_format(y, x)

    def extra_repr(self) -> str:
        return f"c={self.c}"


def _plain(x: Tensor, dtype: torch.dtype, gamma: Tensor, *weights: Tensor) -> Tensor:
    """gamma * V softmax(Q^T K)^T + x; products with the values in `dtype`, energies wider."""
    low = x.to(dtype)
    pairs = zip(weights[::2], weights[1::2], strict=True)
    q, k, v = (F.conv2d(low, w.to(dtype), b.to(dtype)).flatten(2) for w, b in pairs)
    energies = torch.bmm(upcast(q).mT, upcast(k))  # B N N
    o = torch.bmm(v, energies.softmax(-1).to(dtype).mT).reshape(x.shape)
    return gamma * o.to(x.dtype) + x


def _stacked(weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The three convolutions as one: weight (2 r + C, C) and bias."""
    return torch.cat(weights[::2]).flatten(1), torch.cat(weights[1::2])


def _project(pixels: Tensor, dtype: torch.dtype, weights: list[Tensor]) -> Tensor:
    """Queries, keys and values, one below the other."""
    weight, bias = _stacked(weights)
    return F.conv1d(pixels.to(dtype), weight.to(dtype)[:, :, None], bias.to(dtype))


def _split(qkv: Tensor, c: int) -> tuple[Tensor, ...]:
    """Queries and keys, in float32 at least, and values."""
    r = (qkv.shape[1] - c) // 2
    q, k, v = qkv.split_with_sizes((r, r, c), 1)
    return upcast(q), upcast(k), v


def _chunks(x: Tensor) -> list[slice]:
    """Queries in runs, such that a run's rows of the attention stay in a cache."""
    b, _, n = x.shape
    step = max(64, (1 << 19) // max(1, b * n))
    return [slice(i, i + step) for i in range(0, n, step)]


def _forward(
    x: Tensor, dtype: torch.dtype, gamma: Tensor, *weights: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    pixels = x.flatten(2)  # B C N
    _, c, n = pixels.shape
    qkv = _project(pixels, dtype, list(weights))
    q, k, v = _split(qkv, c)
    y = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    for run in _chunks(pixels):
        attention = torch.bmm(q[:, :, run].mT, k).softmax(-1).to(dtype)  # B n N
        y[:, :, run] = torch.bmm(v, attention.mT)
    torch.addcmul(pixels, gamma, y, out=y)
    # Of many pixels the projections are cheap to repeat beside the attention; of few they are not.
    return y.view(x.shape), () if n > 4 * c else (qkv,)


def _backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The rows of the attention again, run by run; gamma multiplies sums, not their terms."""
    x, dtype, gamma, *weights = args
    pixels, grad = x.flatten(2), grad.flatten(2)
    b, c, _ = pixels.shape
    qkv = saved[0] if saved else _project(pixels, dtype, weights)
    q, k, v = _split(qkv, c)
    sums = torch.zeros_like(qkv, dtype=q.dtype)
    dq, dk, dv = _split(sums, c)
    for run in _chunks(pixels):
        attention = torch.bmm(q[:, :, run].mT, k).softmax(-1)
        g = grad[:, :, run].to(dtype)
        slope = torch.bmm(g.mT, v).to(q.dtype)
        slope = torch._softmax_backward_data(slope, attention, -1, q.dtype)
        dq[:, :, run] = torch.bmm(k, slope.mT)
        dk.baddbmm_(q[:, :, run], slope)
        dv += torch.bmm(g, attention.to(dtype))
    dgamma = (v * dv).sum().to(x.dtype).expand(1)
    dbias = sums.mul_(gamma).sum((0, 2)).to(x.dtype)
    dbias[len(dbias) - c - q.shape[1] : -c] = 0  # a key bias shifts whole rows: softmax drops it
    sums = sums.to(x.dtype)
    weight, _ = _stacked(weights)
    dx = torch.baddbmm(grad, weight.mT.expand(b, -1, -1), sums).view(x.shape) if needs[0] else None
    widths = [len(w) for w in weights[::2]]
    dweights = torch.bmm(sums, pixels.mT).sum(0)[:, :, None, None].split_with_sizes(widths)
    dbiases = dbias.split_with_sizes(widths)
    pairs = (d for pair in zip(dweights, dbiases, strict=True) for d in pair)
    return dx, None, dgamma, *pairs


_by_hand = CustomGradient(_plain, _forward, _backward)
