"""resize_conv against its formula, also with kernels of even size."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

import attnzoo
from attnzoo import InputSize
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from distributions import assert_uniform


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("guide", [(5, 7), (32, 48), (90, 20)])
def test_the_formula(kernel: int, guide: tuple[int, int]) -> None:
    block = attnzoo.build("resize_conv", 3, guidance=2, kernel=kernel, dtype=torch.float64)
    randomize_parameters(block)
    source, guidance = torch.randn(2, 3, 2, 3).double(), torch.randn(2, 2, *guide).double()
    x = source
    for i, conv in enumerate((block.conv1, block.conv2, block.conv3, block.conv4)):
        big = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        small = F.interpolate(guidance, big.shape[2:], mode="bilinear", align_corners=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of even kernels
            y = F.conv2d(torch.cat((big, small), 1), conv.weight, conv.bias, padding="same")
        x = big + (y.clamp(min=0) if i < 3 else y)
    assert_close(block(source, guidance), x)


def test_initial_values_and_counts() -> None:
    block = attnzoo.build("resize_conv", 13)
    assert_uniform(torch.cat([p for p in block.parameters() if p.ndim > 1]), 1 / math.sqrt(16))
    for config, params in (({"c": 384}, 595_968), ({"c": 64, "kernel": 3}, 154_624)):
        block = attnzoo.build("resize_conv", **config, device="meta")
        assert sum(p.numel() for p in block.parameters()) == params
    assert block.macs(InputSize(height=7, width=5)) == 67 * 64 * 9 * 35 * 340


def test_refusals() -> None:
    block = attnzoo.build("resize_conv", 3)
    with pytest.raises(ValueError, match=r"guidance has 1 samples .* source 2"):
        block(torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 9, 9))
    with pytest.raises(ValueError, match="guidance has 1 channels"):
        block(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 9, 9))
