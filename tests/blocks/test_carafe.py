"""carafe and carafe_stack against the formula, pixel by pixel."""

import math

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo import InputSize
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from distributions import assert_normal, assert_uniform


def by_pixels(block: nn.Module, x: Tensor) -> Tensor:
    b, c, height, width = x.shape
    s, k, g = block.scale, block.kernel, block.groups
    m = block.content_encoder(block.channel_compressor(x))
    m = torch.nn.functional.pixel_shuffle(m, s)
    out = torch.zeros(b, c, s * height, s * width, dtype=x.dtype)
    for i in range(s * height):
        for j in range(s * width):
            for channel in range(c):
                first = channel // (c // g) * k * k
                weights = m[:, first : first + k * k, i, j].softmax(1)
                for tap in range(k * k):
                    y, z = i // s - k // 2 + tap // k, j // s - k // 2 + tap % k
                    if 0 <= y < height and 0 <= z < width:
                        out[:, channel, i, j] += weights[:, tap] * x[:, channel, y, z]
    return out


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"scale": 3, "kernel": 3, "groups": 2},
        {"scale": 1, "kernel": 1},
        {"encoder_kernel": 1, "groups": 4, "kernel": 3},
        {"encoder_kernel": 2, "encoder_dilation": 2, "kernel": 3},
        {"encoder_kernel": 3, "encoder_dilation": 2, "kernel": 3},
    ],
)
def test_the_formula(config: dict[str, int]) -> None:
    block = attnzoo.build("carafe", 4, compressed=5, **config, dtype=torch.float64)
    randomize_parameters(block)
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    with torch.no_grad():
        assert_close(block(x), by_pixels(block, x))
        assert torch.equal(block(x, torch.randn(1, 9)), block(x))  # any guidance is ignored


def test_zero_weights_give_a_box_filter_that_fades_at_the_border() -> None:
    block = attnzoo.build("carafe", 64)
    y = block(torch.ones(1, 64, 9, 9))
    assert (y[..., 4:-4, 4:-4] - 1).abs().max() < 1e-5
    assert (y[..., 0, 0] - 9 / 25).abs().max() < 1e-2
    assert_uniform(block.channel_compressor.weight, math.sqrt(6 / 128))
    assert_normal(block.content_encoder.weight, 0.001)
    assert not block.channel_compressor.bias.any()
    assert not block.content_encoder.bias.any()


def test_a_stack_equals_its_steps() -> None:
    block = attnzoo.build("carafe_stack", 3, compressed=4, dtype=torch.float64)
    randomize_parameters(block)
    x = torch.randn(1, 3, 1, 2, dtype=torch.float64)
    y = x
    for step in (block.up1, block.up2, block.up3, block.up4):
        y = step(y)
    assert torch.equal(block(x, torch.zeros(1, 3, 5, 5)), y)
    assert y.shape == (1, 3, 16, 32)
    assert block.up1.kernel == 3


def test_a_stack_costs_its_four_steps() -> None:
    block = attnzoo.build("carafe_stack", 3, device="meta")
    steps = (block.up1, block.up2, block.up3, block.up4)
    sizes = [InputSize(height=3 * 2**i, width=5 * 2**i) for i in range(4)]
    wanted = sum(step.macs(size) for step, size in zip(steps, sizes, strict=True))
    assert block.macs(sizes[0]) == wanted


def test_published_counts() -> None:
    def params(name: str, **config: int) -> int:
        block = attnzoo.build(name, 384, **config, device="meta")
        return sum(p.numel() for p in block.parameters())

    assert (params("carafe"), params("carafe", kernel=3)) == (82_340, 45_412)
    assert params("carafe_stack") == 181_648
    block = attnzoo.build("carafe", 10, device="meta")
    one = 10 * 64 + 64 * 9 * 100 + 4 * 25 * 10
    assert block.macs(InputSize(height=7, width=5)) == 35 * one


def test_refusals() -> None:
    with pytest.raises(ValueError, match="groups=3 must divide c=64"):
        attnzoo.build("carafe", 64, groups=3)
    with pytest.raises(ValueError, match=r"encoder_kernel=4 .* no middle; take encoder_kernel=3"):
        attnzoo.build("carafe", 64, encoder_kernel=4)
    with pytest.raises(ValueError, match="kernel=4 must be odd"):
        attnzoo.build("carafe", 64, kernel=4)
    with pytest.raises(ValueError, match="source has 3 channels"):
        attnzoo.build("carafe", 4)(torch.zeros(1, 3, 2, 2))


def test_a_known_variant_is_named() -> None:
    keys = ("comp.conv.weight", "comp.bn.weight", "enc.conv.weight", "enc.bn.weight")
    with pytest.raises(ValueError, match="XiaLiPKU/CARAFE"):
        attnzoo.from_upstream("carafe", {key: torch.zeros(1) for key in keys}, c=4)
