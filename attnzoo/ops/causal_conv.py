"""A causal depthwise convolution along the steps, one short filter for each channel.

    y_t = bias + sum_j w_j u_{t - (k - 1) + j},    zeros before the first step

The plain form is torch's convolution. The hand-written pair adds k shifted products: on a CPU the
backward pass of a depthwise convolution takes longer than all else that a block does.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..autograd import CustomGradient
from .precision import autocast_disabled


def causal_conv(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of (N, T, E) with `weight` (E, 1, k) and `bias` (E), all of u's dtype."""
    with autocast_disabled(u):
        like = weight.to(u.dtype), None if bias is None else bias.to(u.dtype)
        return _conv(u, *like)  # type: ignore[no-any-return]


def _plain(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    ahead = F.pad(u.mT, (weight.shape[2] - 1, 0))
    return F.conv1d(ahead, weight, bias, groups=weight.shape[0]).mT


def _forward(u: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    x, taps = _exact(u), _exact(weight)[:, 0].t()  # k E
    y = x * taps[-1] if bias is None else torch.addcmul(_exact(bias), x, taps[-1])
    for late, tap in _lags(taps, u.shape[1]):
        y[:, late:].addcmul_(x[:, :-late], tap)
    return y.to(u.dtype), ()


def _backward(
    needs: tuple[bool, ...], args: tuple[Tensor, ...], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    u, weight, bias = args
    x, g, taps = _exact(u), _exact(grad), _exact(weight)[:, 0].t()
    du = g * taps[-1]
    dw = torch.zeros_like(taps)
    dw[-1] = (g * x).sum((0, 1))
    for late, tap in _lags(taps, u.shape[1]):
        du[:, :-late].addcmul_(g[:, late:], tap)
        dw[-1 - late] = (g[:, late:] * x[:, :-late]).sum((0, 1))
    db = None if bias is None else g.sum((0, 1)).to(u.dtype)
    return du.to(u.dtype), dw.t().unsqueeze(1).to(u.dtype), db


def _lags(taps: Tensor, steps: int) -> list[tuple[int, Tensor]]:
    """The taps that look back, and how far; those that see zeros only are left out."""
    last = len(taps) - 1
    return [(late, taps[last - late]) for late in range(1, min(last + 1, steps))]


def _exact(tensor: Tensor) -> Tensor:
    """In float32 where the sums over taps and steps would lose digits."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


_conv = CustomGradient(_plain, _forward, _backward)
