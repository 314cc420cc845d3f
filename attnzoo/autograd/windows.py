"""Sums and dot products over windows, one tap at a time and in place, forward and backward.

Each is a map of the other two in the gradient: of sum_ij w[i, j] x[h + i, w + j] by x it is the sum
spread back over the windows, by w the dot products of x with the gradient, and so on around.
On a CPU a few channels at a time stay in the processor's cache over all taps.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..ops import windows
from .custom_gradient import Pair, custom_gradient

_MIN_NUMEL = 2**13  # smaller maps are faster in the reference form
_NUMBERS = 2**17  # in a chunk: half a megabyte of float32


def _sum(x: Tensor, weights: Tensor) -> Tensor:
    """As `ops.windows.window_sum`."""
    b, g, d = x.shape[:3]
    k, s, h, w = weights.shape[3:]
    out, weights = x.new_zeros(b, g, d, s, h, w), weights.contiguous()
    for chunk in _channels(out):
        for i, j in _taps(k):
            shifted = _shifted(x[:, :, chunk], i, j, h, w)
            out[:, :, chunk].addcmul_(shifted, weights[:, :, None, i, j])
    return out


def _dots(q: Tensor, x: Tensor, k: int) -> Tensor:
    """As `ops.windows.window_dots`."""
    b, g, _, s, h, w = q.shape
    out = q.new_zeros(b, g, k, k, s, h, w)
    for chunk in _channels(q):
        buffer = torch.empty_like(q[:, :, chunk])
        for i, j in _taps(k):
            torch.mul(q[:, :, chunk], _shifted(x[:, :, chunk], i, j, h, w), out=buffer)
            out[:, :, i, j] += buffer.sum(2)
    return out


def _spread(y: Tensor, weights: Tensor) -> Tensor:
    """y[h, w] times weights[i, j, h, w], added up at (h + i, w + j): of `_sum` the gradient by x.

    y (B, G, D, S, H, W), weights (B, G, k, k, S, H, W) -> (B, G, D, H + k - 1, W + k - 1).
    """
    b, g, d, s, h, w = y.shape
    k = weights.shape[2]
    out, weights = y.new_zeros(b, g, d, h + k - 1, w + k - 1), weights.contiguous()
    for chunk in _channels(y):
        for i, j in _taps(k):
            there = out[:, :, chunk, i : i + h, j : j + w]
            for n in range(s):
                there.addcmul_(y[:, :, chunk, n], weights[:, :, None, i, j, n])
    return out


def _channels(x: Tensor) -> Iterator[slice]:
    """Slices of the third axis; one for all of it on an accelerator."""
    width = x.shape[2]
    step = max(1, _NUMBERS * width // max(1, x.numel())) if x.device.type == "cpu" else width
    return (slice(start, start + step) for start in range(0, width, step))


def _taps(k: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(k) for j in range(k))


def _shifted(x: Tensor, i: int, j: int, h: int, w: int) -> Tensor:
    """Tap (i, j) of every window, a view: (B, G, D, 1, H, W)."""
    return x[..., i : i + h, j : j + w].unsqueeze(3)


def _sum_backward(
    needs: tuple[bool, ...], args: tuple[Tensor, Tensor], saved: tuple[()], grad: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    x, weights = args
    return (
        _spread(grad, weights) if needs[0] else None,
        _dots(grad, x, weights.shape[2]) if needs[1] else None,
    )


def _dots_backward(
    needs: tuple[bool, ...], args: tuple[Tensor, Tensor, int], saved: tuple[()], grad: Tensor
) -> tuple[Tensor | None, Tensor | None, None]:
    q, x, _ = args
    return _sum(x, grad) if needs[0] else None, _spread(q, grad) if needs[1] else None, None


window_sum = custom_gradient(
    windows.window_sum, Pair(lambda *args: (_sum(*args), ()), _sum_backward, _MIN_NUMEL)
)
window_dots = custom_gradient(
    windows.window_dots, Pair(lambda *args: (_dots(*args), ()), _dots_backward, _MIN_NUMEL)
)
