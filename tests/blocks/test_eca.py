"""Efficient channel attention against its formula, the paper's rule for the kernel, and timm."""

from typing import Any

import pytest
import timm.layers
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.testing.closeness import assert_close

from contract import assert_steps_equal, made
from distributions import assert_uniform


def formula(block: nn.Module, x: Tensor) -> Tensor:
    """Channel i depends on the means of its neighbors, the first of them by the first tap."""
    b, c, h, w = x.shape
    taps = block.conv.weight.flatten()
    means = x.sum((2, 3)) / (h * w)
    zeros = means.new_zeros(b, len(taps) // 2)
    padded = torch.cat((zeros, means, zeros), 1)
    z = sum(tap * padded[:, i : i + c] for i, tap in enumerate(taps))
    return x / (1 + (-z).exp())[:, :, None, None]


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 9, 2)], ids=str)
@pytest.mark.parametrize(
    "config",
    [{"c": 5}, {"c": 40}, {"c": 3, "kernel_size": 7}, {"c": 9, "gamma": 1, "b": 2}],
    ids=str,
)
def test_equals_the_formula(config: dict[str, Any], size: tuple[int, int, int]) -> None:
    b, h, w = size
    at = attnzoo.InputSize(batch=b, height=h, width=w)
    _, block, inputs = made("eca", at, torch.float64, **config)
    assert_steps_equal(block, inputs, lambda leaves: formula(block, leaves["x"]))


@pytest.mark.parametrize(
    ("config", "taps"),
    [
        *(({"c": c}, k) for c, k in ((1, 1), (7, 1), (8, 3), (127, 3), (128, 5), (2047, 5))),
        ({"c": 2048}, 7),
        ({"c": 64, "gamma": 1, "b": 0}, 7),  # 6, made odd
        ({"c": 64, "gamma": 1, "b": -1}, 5),
        ({"c": 2, "gamma": 1, "b": -4}, 3),  # the magnitude of -3
        ({"c": 2048, "kernel_size": 3}, 3),
    ],
    ids=str,
)
def test_the_rule_gives_the_papers_kernel_sizes(config: dict[str, Any], taps: int) -> None:
    block = attnzoo.build("eca", **config)
    assert block.conv.weight.shape == (1, 1, taps)
    assert block.macs(attnzoo.InputSize(3, 1, 5, 7)) == config["c"] * taps


def test_timms_weights_load_from_eight_channels_on() -> None:
    theirs, x = timm.layers.EcaModule(24), torch.randn(2, 24, 5, 4)
    ours = attnzoo.from_upstream("eca", theirs.state_dict(), c=24)
    assert_close(ours(x), theirs(x))
    with pytest.raises(ValueError, match=r"conv.weight of shape \(1, 1, 3\) for \(1, 1, 1\)"):
        attnzoo.from_upstream("eca", timm.layers.EcaModule(7).state_dict(), c=7)


def test_initial_values() -> None:
    assert_uniform(attnzoo.build("eca", c=8, kernel_size=4095).conv.weight, 4095**-0.5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kernel_size": 4}, "kernel_size=4 must be odd; the nearest are 3, 5"),
        ({"kernel_size": 65537}, "kernel_size=65537 must be at most 65535"),
        ({"gamma": 1e-300}, "gamma=1e-300 and b=1.0, must be at most 65535"),
        ({"gamma": 0}, "gamma=0.0 must be above 0"),
    ],
    ids=str,
)
def test_refusals(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("eca", c=64, **config)


def test_the_known_variant_with_a_bias_is_named() -> None:
    theirs = {"conv.weight": torch.ones(1, 1, 3), "conv.bias": torch.ones(1)}
    with pytest.raises(ValueError, match="fightingcv's ECAAttention, which has a bias"):
        attnzoo.from_upstream("eca", theirs, c=64)
