"""The checks tell planted faults by name, and are silent about right modules that look odd."""

from typing import Any

import pytest
import torch
from torch import nn

from attnzoo.testing import ContractError, check_module

from faults import FAULTS, RIGHT, Fault, inputs_of


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.module.__name__)
def test_a_planted_fault_is_told(case: Fault) -> None:
    with pytest.raises(ContractError) as caught:
        check_module(case.module(), inputs_of(case.module), checks=["runs", case.check])
    told = {o.check: o for o in caught.value.outcomes if o.verdict == "no"}
    assert case.check in told, caught.value
    assert case.words in told[case.check].text
    assert told[case.check].remedy


right = pytest.mark.parametrize(
    ("module", "example"), [pytest.param(*each, id=each[0].__name__) for each in RIGHT]
)


@right
def test_a_right_module_is_not_blamed(module: type[nn.Module], example: Any) -> None:
    torch.manual_seed(0)
    found = check_module(module(), example(), skip=["compile"])
    assert sum(outcome.verdict == "yes" for outcome in found) > 20


@pytest.mark.slow
@right
def test_a_right_module_passes_everything(module: type[nn.Module], example: Any) -> None:
    check_module(module(), example(), fast=False)


def test_there_are_the_thirty_faults() -> None:
    assert len(FAULTS) >= 30
    assert len({case.module for case in FAULTS}) == len(FAULTS)
