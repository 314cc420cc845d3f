"""Pyramid squeeze attention against its formula, branch by branch."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo

from contract import assert_steps_equal, made
from distributions import assert_uniform

FORMS = [
    {"c": 64},
    {"c": 16, "c_out": 64},
    {"c": 6, "c_out": 66, "kernels": [1, 5], "groups": [3, 1]},
    {"c": 4, "c_out": 80, "kernels": [3] * 5, "groups": [1, 2, 4, 2, 1], "stride": 2},
]


def formula(block: nn.Module, x: Tensor) -> Tensor:
    maps, exponentials = [], []
    fc1, fc2 = block.se.fc1, block.se.fc2
    for conv in block.convs:
        side = conv.kernel_size[0] // 2
        u = F.conv2d(F.pad(x, (side,) * 4), conv.weight, stride=conv.stride, groups=conv.groups)
        z = (u.mean((2, 3)) @ fc1.weight.T + fc1.bias).clamp(min=0)
        gate = 1 / (1 + (-(z @ fc2.weight.T + fc2.bias)).exp())
        maps.append(u)
        exponentials.append(gate.exp()[:, :, None, None])
    total = sum(exponentials)
    weighed = [e / total * u for e, u in zip(exponentials, maps, strict=True)]
    return torch.cat(list(reversed(weighed)), 1)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 7, 4)], ids=str)
@pytest.mark.parametrize("config", FORMS, ids=str)
def test_equals_the_formula(config: dict[str, Any], size: tuple[int, int, int]) -> None:
    b, h, w = size
    at = attnzoo.InputSize(batch=b, height=h, width=w)
    _, block, inputs = made("psa", at, torch.float64, **config)
    assert_steps_equal(block, inputs, lambda leaves: formula(block, leaves["x"]))


def test_macs_by_hand() -> None:
    at = attnzoo.InputSize(3, 1, 5, 7)
    block = attnzoo.build("psa", c=16, c_out=64)
    convs = 16 * 16 * (9 // 1 + 25 / 4 + 49 / 8 + 81 / 16)
    assert block.macs(at) == 35 * convs + 4 * 2 * 16
    assert sum(p.numel() for p in block.parameters()) == convs + 2 * 16 + 16 + 1
    strided = attnzoo.build("psa", c=16, c_out=64, stride=3)
    assert strided.macs(at) == 2 * 3 * convs + 4 * 2 * 16


def test_initial_values_are_pytorchs() -> None:
    block = attnzoo.build("psa", c=64, c_out=2048)
    for conv, side, groups in zip(block.convs, (3, 5, 7, 9), (1, 4, 8, 16), strict=True):
        assert_uniform(conv.weight, (64 / groups * side**2) ** -0.5)
    assert_uniform(block.se.fc1.weight, 512**-0.5)
    assert_uniform(block.se.fc2.weight, 32**-0.5)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"c": 32}, "c_out=32 gives each of 4 branches 8 channels.*take c_out=64 or more"),
        ({"c": 66}, "branches=4 must divide c_out=66"),
        ({"c": 8, "c_out": 64}, "groups=16 must divide c=8; the nearest is 8"),
        ({"c": 64, "groups": [1, 1, 1, 64]}, "groups=64 must divide width=16"),
        ({"c": 64, "kernels": [3, 5]}, r"groups=\(1, 4, 8, 16\) must have an item for each"),
        ({"c": 64, "kernels": [3, 5, 7, 8]}, r"kernels\[3\]=8 must be odd; the nearest are 7, 9"),
        ({"c": 64, "kernels": [], "groups": []}, "must be non-empty"),
    ],
    ids=str,
)
def test_refusals(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("psa", **config)


def test_the_copy_that_splits_its_input_is_named() -> None:
    theirs = {"convs.0.bias": torch.ones(16), "se_blocks.0.1.weight": torch.ones(4, 16, 1, 1)}
    with pytest.raises(ValueError, match="fightingcv's PSA, which splits the channels"):
        attnzoo.from_upstream("psa", theirs, c=64)
