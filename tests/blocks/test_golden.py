"""The authors' own numbers: outputs, all gradients and BatchNorm buffers, to 1e-9 in float64."""

import pytest

import attnzoo
from attnzoo import reference
from attnzoo.autograd import reference_forms

from matrix import Cell, ours

FILES = {path.stem: path for name in attnzoo.names() for path in reference.cases(name)}


@pytest.mark.parametrize("stem", FILES)
def test_reference_case(stem: str) -> None:
    verdict = reference.Case.load(FILES[stem]).verdict()
    assert verdict.passed, f"{verdict.worst} is off by {verdict.error:.2e}"


@pytest.mark.parametrize("stem", FILES)
def test_reference_case_in_plain_form(stem: str) -> None:
    with reference_forms():
        verdict = reference.Case.load(FILES[stem]).verdict()
    assert verdict.passed, f"{verdict.worst} is off by {verdict.error:.2e}"


@pytest.mark.every_block
@pytest.mark.capability("weights")
def test_the_authors_weights_give_their_numbers(name: str, cell: Cell) -> None:
    verdicts = attnzoo.verify(name)
    if not verdicts:
        cell.not_applicable("it ships no reference vectors")
    assert all(verdict.passed for verdict in verdicts), verdicts


def test_every_block_of_the_package_has_reference_vectors() -> None:
    assert [name for name in attnzoo.names() if ours(name) and not reference.cases(name)] == []
