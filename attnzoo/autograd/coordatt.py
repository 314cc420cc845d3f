"""Coordinate attention's product with two gates; each pass allocates one input-sized tensor."""

from typing import Any

import torch
from torch import Tensor

from .custom_gradient import Pair


def _scale(x: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return torch.mul(x, columns).mul_(rows), ()


def _scale_backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor | None, ...]:
    x, rows, columns = args
    buffer = x * dy
    maps = buffer.flatten(0, 1)  # BC H W
    d_rows = torch.bmm(maps, columns.flatten(0, 1).mT).view(rows.shape)
    d_columns = torch.bmm(rows.flatten(0, 1).mT, maps).view(columns.shape)
    dx = torch.mul(dy, rows, out=buffer).mul_(columns) if needs[0] else None
    return dx, d_rows, d_columns


pair = Pair(_scale, _scale_backward, min_numel=2**17)
