"""EMA against its formula, group by group, also for groups of one value."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo
from attnzoo.testing.closeness import assert_close

from contract import assert_steps_equal, made
from distributions import assert_uniform


def formula(block: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([one_group(block, u) for u in x.chunk(block.groups, 1)], 1)


def one_group(block: nn.Module, u: Tensor) -> Tensor:
    weight, bias = block.conv1x1.weight.flatten(1), block.conv1x1.bias[:, None]
    r = torch.einsum("bdh,od->boh", u.mean(3), weight) + bias
    s = torch.einsum("bdw,od->bow", u.mean(2), weight) + bias
    gated = u * r.sigmoid()[..., None] * s.sigmoid()[:, :, None]
    deviation = gated - gated.mean((2, 3), keepdim=True)
    variance = deviation.square().mean((2, 3), keepdim=True)
    u1 = deviation / (variance + 1e-5).sqrt() * block.gn.weight[:, None, None]
    u1 = u1 + block.gn.bias[:, None, None]
    u2 = F.conv2d(u, block.conv3x3.weight, block.conv3x3.bias, padding=1)
    p1, p2 = (t.mean((2, 3)).softmax(1)[:, :, None, None] for t in (u1, u2))
    return u * ((p1 * u2).sum(1) + (p2 * u1).sum(1)).sigmoid()[:, None]


@pytest.mark.parametrize("size", [(2, 1, 1), (1, 7, 4), (3, 5, 1)], ids=str)
@pytest.mark.parametrize(
    "config", [{"c": 32}, {"c": 12, "groups": 2}, {"c": 6, "groups": 6}, {"c": 5, "groups": 1}],
    ids=str,
)  # fmt: skip
def test_equals_the_formula(config: dict[str, int], size: tuple[int, int, int]) -> None:
    b, h, w = size
    at = attnzoo.InputSize(batch=b, height=h, width=w)
    _, block, inputs = made("ema", at, torch.float64, **config)
    assert_steps_equal(block, inputs, lambda leaves: formula(block, leaves["x"]))


def test_one_value_in_one_group() -> None:
    _, block, inputs = made(
        "ema", attnzoo.InputSize(batch=1, height=1, width=1), torch.float64, c=4, groups=1
    )
    assert_steps_equal(block, inputs, lambda leaves: formula(block, leaves["x"]))


def test_macs_by_hand() -> None:
    at = attnzoo.InputSize(3, 1, 6, 5)
    assert attnzoo.build("ema", c=32, groups=8).macs(at) == 75_776 // 2
    block = attnzoo.build("ema", c=12, groups=2)
    assert block.macs(at) == 2 * (11 * 36 + 9 * 36 * 30 + 2 * 6 * 30)
    assert sum(p.numel() for p in block.parameters()) == 10 * 36 + 4 * 6


def test_initial_values_are_pytorchs() -> None:
    block = attnzoo.build("ema", c=64, groups=2)
    assert_uniform(block.conv1x1.weight, 32**-0.5)
    assert_uniform(block.conv3x3.weight, (9 * 32) ** -0.5)
    assert_close(block.gn.weight, torch.ones(32))
    assert not block.gn.bias.any()


@pytest.mark.parametrize("c", [4, 30])
def test_groups_that_do_not_divide_are_refused(c: int) -> None:
    with pytest.raises(ValueError, match=f"groups=8 must divide c={c}; the nearest"):
        attnzoo.build("ema", c=c)
