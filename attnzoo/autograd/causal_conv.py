"""The causal depthwise convolution as k shifted products, in float32 for half precision.

On a CPU, the backward pass of torch's depthwise convolution takes longer than the rest of a block.
"""

import torch
from torch import Tensor

from ..ops import causal_conv as reference
from ..ops.precision import in_one_dtype, upcast
from .custom_gradient import Pair, custom_gradient


def _forward(u: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    x, taps = upcast(u), upcast(weight)[:, 0].t()  # k E
    y = x * taps[-1] if bias is None else torch.addcmul(upcast(bias), x, taps[-1])
    for lag, tap in _lags(taps, u.shape[1]):
        y[:, lag:].addcmul_(x[:, :-lag], tap)
    return y.to(u.dtype), ()


def _backward(
    needs: tuple[bool, ...], args: tuple[Tensor, ...], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    u, weight, bias = args
    x, g, taps = upcast(u), upcast(grad), upcast(weight)[:, 0].t()
    du = g * taps[-1]
    dw = torch.zeros_like(taps)
    dw[-1] = (g * x).sum((0, 1))
    for lag, tap in _lags(taps, u.shape[1]):
        du[:, :-lag].addcmul_(g[:, lag:], tap)
        dw[-1 - lag] = (g[:, lag:] * x[:, :-lag]).sum((0, 1))
    db = None if bias is None else g.sum((0, 1)).to(u.dtype)
    return du.to(u.dtype), dw.t().unsqueeze(1).to(u.dtype), db


def _lags(taps: Tensor, steps: int) -> list[tuple[int, Tensor]]:
    """Lag and weights of each tap but the last, without taps that only read zero padding."""
    last = len(taps) - 1
    return [(lag, taps[last - lag]) for lag in range(1, min(last + 1, steps))]


causal_conv = in_one_dtype(custom_gradient(reference.causal_conv, Pair(_forward, _backward)))
