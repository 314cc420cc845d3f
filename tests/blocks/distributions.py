"""Initial values against the distribution they are drawn from."""

import torch
from torch import Tensor


def assert_uniform(values: Tensor, bound: float) -> None:
    """Drawn evenly from -bound to bound: 500 values at least, so that the moments tell."""
    v = values.detach().double().flatten() / bound
    assert v.numel() >= 500
    assert v.abs().max() <= 1
    quantiles = torch.linspace(0, 1, v.numel(), dtype=v.dtype) * 2 - 1
    assert (v.sort().values - quantiles).abs().max() < 4 / v.numel() ** 0.5


def assert_normal(values: Tensor, std: float) -> None:
    """Drawn from a normal distribution of mean 0: 500 values at least."""
    v = values.detach().double().flatten() / std
    assert v.numel() >= 500
    places = (torch.arange(v.numel(), dtype=v.dtype) + 0.5) / v.numel()
    off = (torch.special.ndtr(v.sort().values) - places).abs().max()
    assert off < 2 / v.numel() ** 0.5
