"""Gated fusion against its formula, in its three variants."""

import pytest
import torch
from torch import Tensor, nn

import attnzoo

from contract import assert_steps_equal, made
from distributions import assert_uniform

VARIANTS = ("tf", "port", "paper")


def normed(v: Tensor, bn: nn.BatchNorm1d, eps: float) -> Tensor:
    axes = tuple(range(v.ndim - 1))
    if bn.training:
        mean, variance = v.mean(axes), v.var(axes, correction=0)
        count = v.numel() // v.shape[-1]
        with torch.no_grad():
            bn.running_mean.mul_(0.9).add_(mean, alpha=0.1)
            bn.running_var.mul_(0.9).add_(variance, alpha=0.1 * count / (count - 1))
            bn.num_batches_tracked.add_(1)
    else:
        mean, variance = bn.running_mean, bn.running_var
    return (v - mean) / (variance + eps).sqrt() * bn.weight + bn.bias


def formula(block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    gx = x @ block.gate_x[0].weight.T
    gy = y @ block.gate_y[0].weight.T + block.gate_y[0].bias
    if len(block.gate_x) == 2:  # the port
        gx, gy = normed(gx, block.gate_x[1], 1e-5), normed(gy, block.gate_y[1], 1e-5)
    z = 1 / (1 + (-gx - gy).exp())
    h = z * x + (1 - z) * y
    if block.out is None:
        return h
    h = h @ block.out[0].weight.T + block.out[0].bias
    h = normed(h, block.out[1], 1e-5 if len(block.out) == 5 else 1e-3).clamp(min=0)
    h = h @ block.out[3].weight.T + block.out[3].bias
    return normed(h, block.out[4], 1e-5) if len(block.out) == 5 else h


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("leading", [(3,), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_formula(variant: str, leading: tuple[int, ...], train: bool) -> None:
    _, block, _ = made("gated_fusion", None, torch.float64, train, c=5, variant=variant)
    x, y = torch.randn(2, *leading, 5, dtype=torch.float64)
    assert_steps_equal(block, {"x": x, "y": y}, lambda leaves: formula(block, **leaves))


def test_one_position_alone() -> None:
    block = attnzoo.build("gated_fusion", c=4).eval()
    x, y = torch.randn(2, 4)
    assert torch.equal(block(x, y), block(x[None], y[None])[0])


@pytest.mark.parametrize(
    ("variant", "params", "macs"),
    [("tf", 16_704, 4 * 64**2), ("port", 17_088, 4 * 64**2), ("paper", 8_256, 2 * 64**2)],
)
def test_counts_and_values_by_hand(variant: str, params: int, macs: int) -> None:
    block = attnzoo.build("gated_fusion", c=64, variant=variant)
    assert sum(p.numel() for p in block.parameters()) == params
    assert block.macs(attnzoo.InputSize(3, 7, 5, 5)) == 7 * macs


def test_initial_values_are_tensorflows() -> None:
    block = attnzoo.build("gated_fusion", c=32)
    for layer in (block.gate_x[0], block.gate_y[0], block.out[0], block.out[3]):
        assert_uniform(layer.weight, (6 / 64) ** 0.5)
        assert layer.bias is None or not layer.bias.any()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        attnzoo.build("gated_fusion", c=4, variant="papers")
    block = attnzoo.build("gated_fusion", c=4)
    with pytest.raises(ValueError, match=r"BatchNorm 1 value per channel.*batch or length"):
        block(torch.ones(1, 1, 4), torch.ones(1, 1, 4))
    with pytest.raises(ValueError, match=r"y has shape \(2, 1, 4\), x \(2, 3, 4\)"):
        block(torch.ones(2, 3, 4), torch.ones(2, 1, 4))
    attnzoo.build("gated_fusion", c=4, variant="paper")(torch.ones(4), torch.ones(4))
