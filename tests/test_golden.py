"""The authors' own numbers: outputs, all gradients and BatchNorm buffers, to 1e-9 in float64."""

import pytest

import attnzoo
from attnzoo import reference
from attnzoo.ops.by_hand import plain_forms

FILES = {path.stem: path for name in attnzoo.names() for path in reference.cases(name)}


@pytest.mark.parametrize("stem", FILES)
def test_reference_case(stem: str) -> None:
    verdict = reference.Case.load(FILES[stem]).verdict()
    assert verdict.passed, f"{verdict.worst} is off by {verdict.error:.2e}"


@pytest.mark.parametrize("stem", FILES)
def test_reference_case_in_plain_form(stem: str) -> None:
    with plain_forms():
        verdict = reference.Case.load(FILES[stem]).verdict()
    assert verdict.passed, f"{verdict.worst} is off by {verdict.error:.2e}"


@pytest.mark.parametrize("name", attnzoo.names())
def test_every_block_has_reference_vectors(name: str) -> None:
    assert reference.cases(name), f"{name!r} ships no reference vectors"
