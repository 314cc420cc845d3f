"""Squeeze-and-excitation against its equation."""

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.blocks.se import SE

from contract import assert_steps_equal, made
from distributions import assert_default


def equation(x: Tensor, block: nn.Module) -> Tensor:
    """y = x * sigmoid(W2 relu(W1 mean_HW(x) + b1) + b2), with loops for the products."""
    hidden, logits = (
        lambda z, fc=fc: (
            sum(z[:, [i]] * fc.weight[:, i] for i in range(z.shape[1]))
            + (0 if fc.bias is None else fc.bias)
        )
        for fc in (block.fc1, block.fc2)
    )
    z = x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    gate = 1 / (1 + (-logits(hidden(z).clamp(min=0))).exp())
    return x * gate[:, :, None, None]


@pytest.mark.parametrize("size", [(1, 1), (13, 11)], ids=str)
@pytest.mark.parametrize("config", [{"c": 7, "reduction": 3}, {"c": 16, "bias": True}], ids=str)
def test_equals_the_equation(config: dict[str, int], size: tuple[int, int]) -> None:
    extent = attnzoo.InputSize(batch=3, height=size[0], width=size[1])
    _, block, inputs = made("se", extent, torch.float64, True, **config)
    assert_steps_equal(block, inputs, lambda leaves: equation(leaves["x"], block))


def test_layers_start_as_torchs_own() -> None:
    assert_default([attnzoo.build("se", 64, reduction=4, bias=True) for _ in range(4)])


def test_multiply_adds_are_those_of_the_mlp() -> None:
    block = attnzoo.build("se", 37, reduction=5)
    assert block.macs(attnzoo.InputSize(3, 2, 13, 11)) == 2 * 37 * 7


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"reduction=16 leaves no channel of c=8"):
        attnzoo.build("se", 8)
    with pytest.raises(ValueError, match="reduction=0 must be at least 1"):
        SE(8, reduction=0)
