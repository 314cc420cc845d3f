"""`window_sum`, `window_dots` and `window_spread`, one tap of the window at a time and in place.

The gradients of each function are computed by the other two, and so are second derivatives: with x
on the padded map, y on pixels and w the weights of their windows, all three are derivatives of
sum w[i, j, h, w] x[h + i, w + j] y[h, w]. On a CPU they take a few channels at a time through all
taps, which stay in the processor's cache.
"""

from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

import torch
from torch import Tensor

from ..ops import windows
from .custom_gradient import Pair, custom_gradient

_P = ParamSpec("_P")
_MIN_NUMEL = 2**13  # smaller maps are faster in the reference form
_CHUNK_NUMEL = 2**17  # elements of a chunk: half a megabyte of float32


def _sum(x: Tensor, weights: Tensor) -> tuple[Tensor, tuple[()]]:
    b, g, d = x.shape[:3]
    k, s, h, w = weights.shape[3:]
    out, weights = x.new_zeros(b, g, d, s, h, w), weights.contiguous()
    for chunk in _channels(out):
        for i, j in _taps(k):
            shifted = x[:, :, chunk, None, i : i + h, j : j + w]
            out[:, :, chunk].addcmul_(shifted, weights[:, :, None, i, j])
    return out, ()


def _dots(y: Tensor, x: Tensor, k: int) -> tuple[Tensor, tuple[()]]:
    b, g, _, s, h, w = y.shape
    out = y.new_zeros(b, g, k, k, s, h, w)
    for chunk in _channels(y):
        part = y[:, :, chunk]
        buffer = torch.empty_like(part)
        for i, j in _taps(k):
            torch.mul(part, x[:, :, chunk, None, i : i + h, j : j + w], out=buffer)
            out[:, :, i, j] += buffer.sum(2)
    return out, ()


def _spread(y: Tensor, weights: Tensor) -> tuple[Tensor, tuple[()]]:
    b, g, d, s, h, w = y.shape
    k = weights.shape[2]
    out, weights = y.new_zeros(b, g, d, h + k - 1, w + k - 1), weights.contiguous()
    for chunk in _channels(y):
        for i, j in _taps(k):
            target = out[:, :, chunk, i : i + h, j : j + w]
            for n in range(s):
                target.addcmul_(y[:, :, chunk, n], weights[:, :, None, i, j, n])
    return out, ()


def _channels(x: Tensor) -> Iterator[slice]:
    """Chunks of the third axis; on an accelerator one chunk of all channels."""
    width = x.shape[2]
    step = max(1, _CHUNK_NUMEL * width // max(1, x.numel())) if x.device.type == "cpu" else width
    return (slice(start, start + step) for start in range(0, width, step))


def _taps(k: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(k) for j in range(k))


def _sum_backward(needs: Any, args: Any, saved: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weights = args
    return (
        window_spread(grad, weights) if needs[0] else None,
        window_dots(grad, x, weights.shape[2]) if needs[1] else None,
    )


def _dots_backward(needs: Any, args: Any, saved: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, x, _ = args
    return (
        window_sum(x, grad) if needs[0] else None,
        window_spread(y, grad) if needs[1] else None,
        None,
    )


def _spread_backward(needs: Any, args: Any, saved: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, weights = args
    return (
        window_sum(grad, weights) if needs[0] else None,
        window_dots(y, grad, weights.shape[2]) if needs[1] else None,
    )


def _with_gradient(
    reference: Callable[_P, Tensor], forward: Any, backward: Any
) -> Callable[_P, Tensor]:
    return custom_gradient(reference, Pair(forward, backward, _MIN_NUMEL, differentiable=True))


window_sum = _with_gradient(windows.window_sum, _sum, _sum_backward)
window_dots = _with_gradient(windows.window_dots, _dots, _dots_backward)
window_spread = _with_gradient(windows.window_spread, _spread, _spread_backward)
