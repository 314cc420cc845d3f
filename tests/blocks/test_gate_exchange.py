"""The gate exchange against its formula, and invalid lists."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnzoo

from contract import assert_steps_equal, made
from distributions import assert_uniform


def formula(block: nn.Module, features: list[Tensor]) -> Tensor:
    exponentials = []
    for gate, x in zip(block.gates, features, strict=True):
        z = (x.mean((2, 3)) @ gate.fc1.weight.T + gate.fc1.bias).clamp(min=0)
        score = 1 / (1 + (-(z @ gate.fc2.weight.T + gate.fc2.bias)).exp())
        exponentials.append(score.exp()[:, :, None, None])
    weighed = [e * x for e, x in zip(exponentials, features, strict=True)]
    return sum(weighed) / sum(exponentials)


@pytest.mark.parametrize("size", [(2, 1, 1), (1, 5, 8)], ids=str)
@pytest.mark.parametrize("config", [{"c": 17}, {"c": 6, "n": 3, "reduction": 2}], ids=str)
def test_equals_the_formula(config: dict[str, int], size: tuple[int, int, int]) -> None:
    b, h, w = size
    at = attnzoo.InputSize(batch=b, height=h, width=w)
    _, block, inputs = made("gate_exchange", at, torch.float64, **config)
    assert_steps_equal(block, inputs, lambda leaves: formula(block, leaves["features"]))


def test_counts_and_values_by_hand() -> None:
    block = attnzoo.build("gate_exchange", c=512, n=3)
    assert block.macs(attnzoo.InputSize(3, 1, 5, 7)) == 3 * 2 * 512 * 32
    assert_uniform(block.gates[2].fc1.weight, 512**-0.5)
    assert_uniform(block.gates[2].fc2.weight, 32**-0.5)


X = torch.ones(2, 16, 5, 4)


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([X] * 3, "features has 3 tensors; the block was built for 4"),
        (X, "features must be a list of 4 tensors, not Tensor"),
        ([X, X, X, X[:1]], r"features\[0\] has shape \(2, .*, features\[3\] \(1, 16, 5, 4\)"),
        ([X, X, X[..., :1], X], r"features\[2\] has shape .* they must agree"),
        ([X, X[:, :3], X, X], r"features\[1\] has 3 channels"),
    ],
)  # fmt: skip
def test_invalid_lists_are_refused(features: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        attnzoo.build("gate_exchange", c=16)(features)


@pytest.mark.parametrize(
    ("config", "words"),
    [({"c": 15}, "leaves no channel of c=15"), ({"c": 16, "n": 1}, "n=1 must be at least 2")],
    ids=str,
)
def test_refusals(config: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("gate_exchange", **config)
