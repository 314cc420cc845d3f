"""Average pooling to a fixed grid, in a form that exports with dynamic sizes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch import is_exporting


def adaptive_average(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, C, H, W) to (B, C, rows, columns), as `adaptive_avg_pool2d`.

    When exported, it is two matrix products: the operator's decomposition for ONNX and other
    runtimes fixes the pixels per cell at the traced size, and is silently wrong at larger sizes.
    """
    if not is_exporting():
        return F.adaptive_avg_pool2d(x, (rows, columns))
    return _averages(x, rows, x.shape[2]) @ x @ _averages(x, columns, x.shape[3]).mT


def _averages(x: Tensor, cells: int, size: int) -> Tensor:
    """(cells, size): the weights with which each cell averages its part of the axis."""
    cell = torch.arange(cells, device=x.device)[:, None]
    start, end = cell * size // cells, ((cell + 1) * size + cells - 1) // cells
    place = torch.arange(size, device=x.device)
    inside = ((place >= start) & (place < end)).to(x.dtype)
    return inside / (end - start).to(x.dtype)
