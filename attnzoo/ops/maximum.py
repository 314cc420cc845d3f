"""Maxima and the index of their first occurrence, which receives the gradient."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .stop_gradient import may_be_derived

_SMALL = 2**16  # elements below which fewer operations are faster than cheaper ones


def largest(x: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """`x.max(dim).values`, whose gradient goes to one element in a tie.

    Where no gradient can be asked for it is `amax`, which is several times as fast.
    """
    if may_be_derived(x):
        return x.max(dim, keepdim=keepdim).values
    return x.amax(dim, keepdim=keepdim)


def max_with_index(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """`x.max(dim)` of a tensor with any number of axes: values and indices; `dim` is not negative.

    If the axis is not the innermost one of contiguous memory, max pooling over it, with the axes
    after it as channels-last channels, gives the same result; on a CPU it is three times as fast.
    """
    inner = x.shape[dim + 1 :].numel()
    if inner < 8 or not _pays(x):
        values, indices = x.max(dim)
        return values, indices
    size = x.shape[dim]
    columns = x.view(-1, size, 1, inner).permute(0, 3, 1, 2)  # N inner size 1
    values, indices = F.max_pool2d_with_indices(columns, (size, 1))
    shape = x.shape[:dim] + x.shape[dim + 1 :]
    return values.reshape(shape), indices.reshape(shape)


def max_over_hw(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last two axes of (B, C, H, W), and its index in the flattened plane."""
    if not _pays(x):
        flat = x.flatten(2).max(2)
        return flat.values, flat.indices
    width = x.shape[3]
    rows, row = max_with_index(x, 2)  # B C W
    values = rows.amax(2)
    place = row * width + torch.arange(width, device=x.device)
    lower = rows < values[..., None]  # not `!=`, which a NaN would satisfy everywhere
    return values, place.masked_fill_(lower, x.shape[2] * width).amin(2)


def scatter_to_max(total: Tensor, dim: int, indices: Tensor, values: Tensor) -> None:
    """Add `values` to `total`, in place, where `max_with_index(_, dim)` found the maxima."""
    if not _pays(total):
        total.scatter_add_(dim, indices.unsqueeze(dim), values.unsqueeze(dim))
        return
    shape, size = total.shape, total.shape[dim]
    inner = shape[dim + 1 :].numel()
    row = torch.arange(0, total.numel(), inner * size, device=total.device)
    column = torch.arange(inner, device=total.device)
    flat = (indices.reshape(-1, inner) * inner).add_(row[:, None]).add_(column)
    total.view(-1).index_add_(0, flat.view(-1), values.reshape(-1))


def _pays(x: Tensor) -> bool:
    """Whether the alternatives to `Tensor.max` are faster despite their overhead."""
    return x.numel() >= _SMALL and x.is_contiguous() and x.device.type == "cpu"
