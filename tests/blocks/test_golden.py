"""The reference vectors: outputs, all gradients and BatchNorm buffers agree to 1e-9 in float64."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import attnzoo
from attnzoo import reference

from matrix import Cell, ours


@pytest.mark.every_block
@pytest.mark.capability("weights")
def test_the_authors_weights_give_their_results(name: str, cell: Cell) -> None:
    verdicts = attnzoo.verify(name)
    if not verdicts:
        cell.not_applicable("it ships no reference vectors")
    wrong = [f"{v.case}: {v.worst} is off by {v.error:.2e}" for v in verdicts if not v.passed]
    assert not wrong, wrong


def test_every_block_of_the_package_has_reference_vectors_or_says_so() -> None:
    without = [name for name in attnzoo.names() if ours(name) and not reference.cases(name)]
    silent = [n for n in without if "no reference vectors" not in attnzoo.describe(n).differs]
    assert silent == []


def altered(y: Tensor, value: float, gradient: bool) -> Tensor:
    """The output with its last element, or that of its gradient, replaced."""
    last = torch.zeros_like(y, dtype=torch.bool)
    last.view(-1)[-1] = True
    if not gradient:
        return torch.where(last, value, y)
    y.register_hook(lambda grad: torch.where(last, value, grad))
    return y


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_single_wrong_number_fails_a_case(
    monkeypatch: pytest.MonkeyPatch, value: float, gradient: bool
) -> None:
    case = reference.Case.load(reference.cases("se")[0])
    assert case.verdict().passed
    block = case.build()
    block.register_forward_hook(lambda _, __, y: altered(y, value, gradient))
    monkeypatch.setattr(reference.Case, "build", lambda _: block)
    verdict = case.verdict()
    assert not verdict.passed
    assert verdict.error > reference.TOLERANCE
    assert verdict.worst.startswith("grad_") == gradient


def test_a_missing_or_misshaped_result_fails_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = reference.Case.load(reference.cases("se")[0])
    found = case.run(case.build())
    for key, value in found.items():
        for wrong in ({}, {key: value[None]}, {key: value * math.nan}):
            rest = {k: v for k, v in found.items() if k != key}
            monkeypatch.setattr(reference.Case, "run", lambda *_, r=rest, w=wrong: {**r, **w})
            verdict = case.verdict()
            assert (verdict.passed, verdict.worst, verdict.error) == (False, key, math.inf)
    assert not dataclasses.replace(verdict, error=math.nan).passed
