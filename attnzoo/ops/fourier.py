"""Sines and cosines of an image's coordinates at frequencies from exp(-2) to exp(10)."""

import torch
from torch import Tensor


def fourier_dtype(device: torch.device) -> torch.dtype:
    """float64, for float32's full precision at the highest frequency; MPS has only float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def frequencies(n: int, device: torch.device) -> Tensor:
    """exp of n numbers from -2 to 10: (n,)."""
    return torch.linspace(-2, 10, n, dtype=fourier_dtype(device), device=device).exp()


def line(low: float, high: float, n: int, device: torch.device) -> Tensor:
    """`torch.linspace` for an n that may be symbolic in a compiled graph: (n,)."""
    steps = torch.arange(n, dtype=fourier_dtype(device), device=device)
    # Not a quotient of two ints, which a dynamic ONNX model would compute in float32.
    return low + steps * (high - low) / max(n - 1, 1)


def fourier_grid(h: int, w: int, n: int, device: torch.device) -> Tensor:
    """Sines, then cosines, of rows and columns in [-1, 1] at n frequencies: (4 n, H, W).

    Channel 2 j + axis of each half has frequency j. Sines and cosines are taken before expanding.
    """
    f = frequencies(n, device)[:, None]
    rows, columns = f * line(-1, 1, h, device), f * line(-1, 1, w, device)  # n H, n W
    both = [
        torch.stack((r[:, :, None].expand(n, h, w), c[:, None].expand(n, h, w)), 1)
        for r, c in ((rows.sin(), columns.sin()), (rows.cos(), columns.cos()))
    ]
    return torch.cat(both).flatten(0, 1)
