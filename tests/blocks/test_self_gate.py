"""The self gate is squeeze-and-excitation with biases."""

import pytest
import torch

import attnzoo

from contract import assert_steps_equal, made
from distributions import assert_uniform


def test_equals_se_with_biases() -> None:
    at = attnzoo.InputSize(batch=3, height=5, width=2)
    _, block, inputs = made("self_gate", at, torch.float64, c=12, reduction=5)

    def se(leaves: dict[str, torch.Tensor]) -> torch.Tensor:
        twin = attnzoo.build("se", c=12, reduction=5, bias=True, dtype=torch.float64)
        state = {key.removeprefix("gate."): p for key, p in block.named_parameters()}
        return torch.func.functional_call(twin, state, leaves["x"])

    assert_steps_equal(block, inputs, se)


def test_counts_and_values_by_hand() -> None:
    block = attnzoo.build("self_gate", c=512)
    assert block.macs(attnzoo.InputSize(3, 1, 5, 7)) == 2 * 512 * 32
    assert_uniform(block.gate.fc1.weight, 512**-0.5)
    assert_uniform(block.gate.fc2.weight, 32**-0.5)
    with pytest.raises(ValueError, match="reduction=16 leaves no channel of c=15"):
        attnzoo.build("self_gate", c=15)
