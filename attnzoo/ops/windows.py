"""Weighted sums and dot products over the k x k window of every pixel, without `unfold`.

The functions process a window row by row, so that their temporary tensors have k values per element
instead of k * k. The map x is padded by k - 1 rows and columns in total. In each of G groups, D
channels share the same weights, and S pixels of a finer map share the same window.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_sum(x: Tensor, weights: Tensor) -> Tensor:
    """Each pixel's weighted sum: out[h, w] = sum_ij weights[i, j, h, w] x[h + i, w + j].

    x (B, G, D, H + k - 1, W + k - 1), weights (B, G, k, k, S, H, W) -> (B, G, D, S, H, W).
    """
    shifted = _columns(x, weights.shape[2], weights.shape[-1])
    if not torch.compiler.is_compiling():
        return _sum_by_rows(shifted.unsqueeze(4), weights)
    # One pixel of the finer map at a time: where the gradient is channels_last, inductor of torch
    # up to 2.15 writes past the end of a sum over D that has S between D and W (torch #196681).
    return torch.stack([_sum_by_rows(shifted, fine) for fine in weights.unbind(4)], 3)


def _sum_by_rows(shifted: Tensor, weights: Tensor) -> Tensor:
    """A window row at a time: shifted (B, G, D, k, *, H + k - 1, W), weights (B, G, k, k, *, H, W).

    Returns (B, G, D, *, H, W).
    """
    k, h = weights.shape[2], weights.shape[-2]
    out = (shifted.narrow(-2, 0, h) * weights[:, :, None, 0]).sum(3)
    for i in range(1, k):
        out = out + (shifted.narrow(-2, i, h) * weights[:, :, None, i]).sum(3)
    return out


def window_dots(y: Tensor, x: Tensor, k: int) -> Tensor:
    """Each pixel's dot products: out[i, j, h, w] = sum_d y[d, h, w] x[d, h + i, w + j].

    y (B, G, D, S, H, W), x (B, G, D, H + k - 1, W + k - 1) -> (B, G, k, k, S, H, W).
    """
    h, shifted = y.shape[-2], _columns(x, k, y.shape[-1]).unsqueeze(4)
    return torch.stack(
        [(y.unsqueeze(3) * shifted.narrow(-2, i, h)).sum(2) for i in range(k)], dim=2
    )


def window_spread(y: Tensor, weights: Tensor) -> Tensor:
    """Each pixel's weights times its value, added up at their positions in the window.

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


def fine_map(y: Tensor, scale: int) -> Tensor:
    """The finer map from the pixels that share a window: (B, C, s s, H, W) -> (B, C, s H, s W)."""
    b, c, _, h, w = y.shape
    y = y.reshape(b, c, scale, scale, h, w).permute(0, 1, 4, 2, 5, 3)  # B C H s W s
    return y.reshape(b, c, scale * h, scale * w)


def _columns(x: Tensor, k: int, w: int) -> Tensor:
    """The map shifted by 0 to k - 1 columns: (B, G, D, k, H + k - 1, W).

    They are copies: with overlapping views, a compiled graph would require maps wider than the
    window. They are selected by index, since inductor of torch 2.15 miscomputes the gradient of
    slices of a map whose other gradient is channels_last.
    """
    shifts = torch.arange(k, device=x.device)[:, None]
    index = (shifts + torch.arange(w, device=x.device)).flatten()
    return torch.unflatten(x.index_select(-1, index), -1, (k, w)).movedim(-2, 3)
