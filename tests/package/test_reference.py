"""The comparison with reference vectors: what is compared, and what counts as an error."""

import math

import pytest
import torch
from torch import Tensor

import attnzoo
from attnzoo import reference
from attnzoo.reference.cases import TOLERANCE, Case, Verdict


def case_of(tensors: dict[str, Tensor], mode: str = "train") -> Case:
    return Case("se", "made", mode, {}, {}, "nobody", "", tensors)


STORED = {
    "output.0": torch.ones(2),
    "grad_input.x": torch.ones(2),
    "grad_weight.fc": torch.ones(2),
    "after.bn.running_mean": torch.ones(2),
}


@pytest.mark.parametrize("key", STORED)
def test_every_stored_tensor_is_compared(key: str) -> None:
    case = case_of({**STORED, "input.x": torch.zeros(2), "weight.fc": torch.zeros(2)})
    assert case._errors(STORED) == dict.fromkeys(STORED, 0.0)
    off = case._errors({**STORED, key: STORED[key] + 0.5})
    assert off == {**dict.fromkeys(STORED, 0.0), key: 0.5}
    without = {k: v for k, v in STORED.items() if k != key}
    assert case._errors(without)[key] == math.inf


@pytest.mark.parametrize(
    ("error", "passed"), [(0.0, True), (TOLERANCE, True), (1.1 * TOLERANCE, False)]
)
def test_a_verdict_is_by_the_largest_error(error: float, passed: bool) -> None:
    made = Verdict(block="se", case="", error=error, worst="", tensors=1, source="", notes="")
    assert made.passed == passed


def test_the_tensor_that_is_off_most_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"output.0": 1e-12, "grad_input.x": 3e-4, "after.bn": 0.0}
    monkeypatch.setattr(Case, "_errors", lambda *_: errors)
    (verdict, *_) = reference.verify("se")
    assert (verdict.worst, verdict.error, verdict.tensors) == ("grad_input.x", 3e-4, 3)
    assert not verdict.passed


def test_lists_of_inputs_are_in_the_order_of_their_numbers() -> None:
    inputs = {f"f{i}": i for i in (10, 2, 0, 1, 11)} | {"x": "x", "mask": "mask"}
    positional, keywords = reference.arrange(inputs)
    assert positional == ["x", [0, 1, 2, 10, 11]]
    assert keywords == {"mask": "mask"}


def test_files_are_of_the_block_and_of_no_other() -> None:
    assert {path.name.split("__")[0] for path in reference.cases("se")} == {"se"}
    assert len(reference.cases("se")) < len(reference.cases())
    with pytest.raises(attnzoo.UnknownBlockError, match="no block is named 'nothing'"):
        attnzoo.verify("nothing")
