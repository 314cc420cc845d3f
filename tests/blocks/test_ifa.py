"""ifa against its formula, pixel by pixel, also for sources that are not square."""

import math

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo import InputSize
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from distributions import assert_uniform


def spaced(low: float, high: float, i: int, n: int) -> float:
    return low if n == 1 else low + (high - low) * i / (n - 1)


def by_pixels(block: nn.Module, x: Tensor) -> Tensor:
    """Eval mode, one sample."""
    _, _, h, w = x.shape
    conv, norm, _, last = block.mlp
    out = torch.zeros(1, last.out_channels, 2 * h, 2 * w, dtype=x.dtype)
    for i in range(2 * h):
        for j in range(2 * w):
            place = (spaced(-1, 1, i, 2 * h), spaced(-1, 1, j, 2 * w))
            waves = [
                f(math.exp(-2 + 12 * n / 19) * p)
                for f in (math.sin, math.cos)
                for n in range(20)
                for p in place
            ]
            rows = spaced(0, h, i // 2, h) - spaced(0, h, i, 2 * h)
            columns = spaced(0, w, j // 2, w) - spaced(0, w, j, 2 * w)
            known = torch.tensor([*waves, rows, columns], dtype=x.dtype)
            y = conv.weight[:, :, 0, 0] @ torch.cat((x[0, :, i // 2, j // 2], known)) + conv.bias
            y = (y - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
            y = y * norm.weight + norm.bias
            y = torch.where(y > 0, y, 0.01 * y)
            out[0, :, i, j] = last.weight[:, :, 0, 0] @ y + last.bias
    return out


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 5), (4, 1)])
@pytest.mark.parametrize("hooked", [False, True])
def test_the_formula(size: tuple[int, int], hooked: bool) -> None:
    block = attnzoo.build("ifa", 3, dtype=torch.float64).eval()
    randomize_parameters(block)
    block.mlp[1].running_mean.normal_()
    seen = []
    if hooked:  # a hooked layer is called on its whole input
        block.mlp[0].register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        assert_close(block(x), by_pixels(block, x))
        assert torch.equal(block(x, None), block(x, torch.zeros(5)))
    assert set(seen) == ({85} if hooked else set())


def test_float32_has_the_precision_of_float64_sines() -> None:
    block = attnzoo.build("ifa", 3).eval()
    x = torch.randn(1, 3, 9, 7)
    assert (block(x) - block.double()(x.double())).abs().max() < 1e-5


def test_initial_values_and_counts() -> None:
    block = attnzoo.build("ifa", 32)
    assert_uniform(block.mlp[0].weight, 1 / math.sqrt(114))
    assert_uniform(block.mlp[3].weight, 1 / math.sqrt(32))
    block = attnzoo.build("ifa", 384, device="meta")
    assert sum(p.numel() for p in block.parameters()) == 327_936
    size = InputSize(height=7, width=5)
    assert block.macs(size) == 4 * 35 * ((384 + 82) * 384 + 384 * 384)


def test_a_single_pixel_trains_as_four() -> None:
    block = attnzoo.build("ifa", 3)
    y = block(torch.randn(1, 3, 1, 1))
    assert y.shape == (1, 3, 2, 2)
    assert y.isfinite().all()
    with pytest.raises(ValueError, match=r"source of shape \(0, 3, 1, 1\) gives .* 0 values"):
        block(torch.randn(0, 3, 1, 1))
