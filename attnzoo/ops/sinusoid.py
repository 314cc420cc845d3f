"""Sinusoidal encodings of positions or days, for attention over time."""

import torch
from torch import Tensor


def sinusoid(positions: Tensor, width: int, period: float) -> Tensor:
    """(...) to (..., width): sin, cos, ... of positions / period^(2 floor(i / 2) / width).

    The powers of the period are computed in float32, as in the published implementations.
    """
    i = torch.arange(width, device=positions.device)
    powers = torch.pow(period, 2 * (i.float() // 2) / width).to(positions.dtype)
    angle = positions[..., None] / powers
    return torch.where(i % 2 == 0, angle.sin(), angle.cos())
