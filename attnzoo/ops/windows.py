"""Weighted sums and dot products over the k x k window of every pixel, never all of it unfolded.

Both go through the window row by row; beside arguments and result they hold k numbers for each of
the result's, not k * k. The map that the windows lie on is padded, by k - 1 rows and columns in
all. S pixels of a finer map may share a window, as G groups of D channels may share weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Each pixel's weighted sum: out[h, w] = sum_ij weights[i, j, h, w] x[h + i, w + j].

    x (B, G, D, H + k - 1, W + k - 1), weights (B, G, k, k, S, H, W) -> (B, G, D, S, H, W).
    """
    k, h = weights.shape[2], weights.shape[-2]
    out = _row_sum(x, weights, 0, h)
    for i in range(1, k):
        out = out + _row_sum(x, weights, i, h)
    return out


def window_dots(q: Tensor, x: Tensor, k: int) -> Tensor:
    """Each pixel's dot products: out[i, j, h, w] = sum_d q[d, h, w] x[d, h + i, w + j].

    q (B, G, D, S, H, W), x (B, G, D, H + k - 1, W + k - 1) -> (B, G, k, k, S, H, W).
    """
    h = q.shape[-2]
    rows = [(q.unsqueeze(-1) * _row(x, i, h, k)).sum(2).movedim(-1, 2) for i in range(k)]
    return torch.stack(rows, 2)


def window_spread(y: Tensor, weights: Tensor) -> Tensor:
    """Every pixel's weights times its value, each added at its place in the window.

    out[h + i, w + j] = sum y[h, w] weights[i, j, h, w]: the gradient of `window_sum` by x.
    y (B, G, D, S, H, W), weights (B, G, k, k, S, H, W) -> (B, G, D, H + k - 1, W + k - 1).
    """
    k = weights.shape[2]
    out = F.pad(torch.zeros_like(y[:, :, :, 0]), (0, k - 1, 0, k - 1))
    for i in range(k):
        for j in range(k):
            tap = (y * weights[:, :, None, i, j]).sum(3)
            out = out + F.pad(tap, (j, k - 1 - j, i, k - 1 - i))
    return out


def _row_sum(x: Tensor, weights: Tensor, i: int, h: int) -> Tensor:
    row = weights[:, :, i].movedim(2, -1).unsqueeze(2)  # B G 1 S H W k
    return (_row(x, i, h, weights.shape[2]) * row).sum(-1)


def _row(x: Tensor, i: int, h: int, k: int) -> Tensor:
    """Row i of every window, a view: (B, G, D, 1, H, W, k)."""
    return x.narrow(-2, i, h).unfold(-1, k, 1).unsqueeze(3)


def fine_map(y: Tensor, scale: int) -> Tensor:
    """The pixels that share windows, each at its place: (B, C, s s, H, W) -> (B, C, s H, s W)."""
    y = y.unflatten(2, (scale, scale)).permute(0, 1, 4, 2, 5, 3)  # B C H s W s
    return y.flatten(4, 5).flatten(2, 3)
