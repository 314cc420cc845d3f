"""CBAM's poolings and its product of two gates, in fewer passes over memory.

`pool` and `pool_channels` return x along with their results, for the next function to use. The
backward pass of each can then add its gradient in place to the one that the next function returned.
"""

from typing import Any

import torch
from torch import Tensor

from ..ops import maximum
from ..ops.chunks import chunks
from .custom_gradient import Pair

MIN_NUMEL = 2**17


def _pool(x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    top, index = maximum.max_over_hw(x)
    return (x, x.mean((2, 3)), top), (index,)


def _pool_backward(
    needs: tuple[bool, ...],
    args: tuple[Any, ...],
    saved: tuple[Tensor, ...],
    dx: Tensor,
    d_mean: Tensor,
    d_top: Tensor,
) -> tuple[Tensor]:
    b, c, h, w = dx.shape
    dx += (d_mean / (h * w))[:, :, None, None]
    rows, columns = saved[0].div(w, rounding_mode="floor"), saved[0].remainder(w)
    batch, channel = (torch.arange(n, device=dx.device) for n in (b, c))
    dx.index_put_((batch[:, None], channel, rows, columns), d_top, accumulate=True)
    return (dx,)


def _pool_channels(x: Tensor, s: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    top, mean = (x.new_empty(x.shape[:1] + x.shape[2:]) for _ in range(2))
    index = torch.empty_like(top, dtype=torch.long)
    for part, buffer in chunks(x):
        u = torch.mul(x[part], s[part, :, None, None], out=buffer)
        top[part], index[part] = maximum.max_with_index(u, 1)
        torch.mean(u, 1, out=mean[part])
    return (x, top, mean), (index,)


def _pool_channels_backward(
    needs: tuple[bool, ...],
    args: tuple[Any, ...],
    saved: tuple[Tensor, ...],
    dx: Tensor,
    d_top: Tensor,
    d_mean: Tensor,
) -> tuple[Tensor, Tensor]:
    (x, s), (index,) = args, saved
    d_mean = (d_mean / x.shape[1])[:, None]  # B 1 H W
    ds = torch.empty_like(s)
    for part, buffer in chunks(x):
        torch.sum(torch.mul(x[part], d_mean[part], out=buffer), (2, 3), out=ds[part])
        dx[part].add_(torch.mul(s[part, :, None, None], d_mean[part], out=buffer))
    channels, d_top = index.flatten(1), d_top.flatten(1)  # B HW
    ds.scatter_add_(1, channels, d_top * x.gather(1, index[:, None]).flatten(1))
    maximum.scatter_to_max(dx, 1, index, (d_top * s.gather(1, channels)).view(index.shape))
    return dx, ds


def _scale(x: Tensor, s: Tensor, gate: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = torch.empty_like(x)
    for part, buffer in chunks(x):
        torch.mul(x[part], s[part, :, None, None], out=buffer)
        torch.mul(buffer, gate[part, None], out=y[part])
    return y, ()


def _scale_backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x, s, gate = args
    dx, ds, d_gate = torch.empty_like(x), torch.empty_like(s), torch.empty_like(gate)
    for part, buffer in chunks(x):
        torch.mul(dy[part], s[part, :, None, None], out=buffer)
        torch.mul(buffer, gate[part, None], out=dx[part])
        torch.sum(buffer.mul_(x[part]), 1, out=d_gate[part])
        torch.mul(dy[part], gate[part, None], out=buffer)
        torch.sum(buffer.mul_(x[part]), (2, 3), out=ds[part])
    return dx, ds, d_gate


pool = Pair(_pool, _pool_backward, MIN_NUMEL)
pool_channels = Pair(_pool_channels, _pool_channels_backward, MIN_NUMEL)
scale = Pair(_scale, _scale_backward, MIN_NUMEL)
