"""Triplet attention's poolings and its mean gate, in fewer passes over memory.

`pool` returns x along with its results, for `scale` to use. The backward pass of `pool` can then
add its gradient in place to the one that `scale` returned.
"""

from typing import Any

import torch
from torch import Tensor

from ..ops import maximum
from ..ops.chunks import chunks
from .custom_gradient import Pair

MIN_NUMEL = 2**17


def _axes(spatial: bool) -> tuple[int, ...]:
    """The axes pooled away for cw, hc and hw."""
    return (2, 3, 1) if spatial else (2, 3)


def _pool(x: Tensor, spatial: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    pooled, indices = [], []
    for axis in _axes(spatial):
        top, index = maximum.max_with_index(x, axis)
        pooled += [top, x.mean(axis)]
        indices.append(index)
    return (x, *pooled), tuple(indices)


def _pool_backward(
    needs: tuple[bool, ...],
    args: tuple[Any, ...],
    saved: tuple[Tensor, ...],
    dx: Tensor,
    *grads: Tensor,
) -> tuple[Tensor | None, ...]:
    x, spatial = args
    axes = _axes(spatial)
    means = [(g / x.shape[axis]).unsqueeze(axis) for g, axis in zip(grads[1::2], axes, strict=True)]
    for part, buffer in chunks(x):
        dx[part].add_(_sum(means, part, buffer))
    for axis, index, grad in zip(axes, saved, grads[::2], strict=True):
        maximum.scatter_to_max(dx, axis, index, grad)
    return dx, None


def _scale(
    x: Tensor, cw: Tensor, hc: Tensor, hw: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    y, shares = torch.empty_like(x), _shares(cw, hc, hw)
    for part, buffer in chunks(x):
        torch.mul(x[part], _sum(shares, part, buffer), out=y[part])
    return y, ()


def _scale_backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor | None, ...]:
    x, cw, hc, hw = args
    shares = _shares(cw, hc, hw)
    dx = torch.empty_like(x)
    d_cw, d_hc = x.new_empty(cw.shape), x.new_empty(hc.shape)
    d_hw = None if hw is None else x.new_empty(hw.shape)
    for part, buffer in chunks(x):
        torch.mul(x[part], dy[part], out=buffer)
        torch.sum(buffer, 2, out=d_cw[part])
        torch.sum(buffer, 3, out=d_hc[part].mT)
        if d_hw is not None:
            torch.sum(buffer, 1, out=d_hw[part])
        torch.mul(dy[part], _sum(shares, part, buffer), out=dx[part])
    return dx, *(None if d is None else d.div_(len(shares)) for d in (d_cw, d_hc, d_hw))


def _shares(cw: Tensor, hc: Tensor, hw: Tensor | None) -> list[Tensor]:
    """Each gate's share of the mean gate; the division is cheap before broadcasting."""
    if hw is None:
        return [(cw / 2)[:, :, None], (hc / 2).mT[..., None]]
    return [(cw / 3)[:, :, None], (hc / 3).mT[..., None], (hw / 3)[:, None]]


def _sum(terms: list[Tensor], part: slice, buffer: Tensor) -> Tensor:
    """The sum of two or three broadcast terms for some samples, in `buffer`."""
    total = torch.add(terms[0][part], terms[1][part], out=buffer)
    return total if len(terms) == 2 else total.add_(terms[2][part])


pool = Pair(_pool, _pool_backward, MIN_NUMEL)
scale = Pair(_scale, _scale_backward, MIN_NUMEL)
