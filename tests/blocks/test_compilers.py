"""Capabilities under compilers: no break, one compilation for all sizes, eager's numbers."""

import pytest

from attnzoo.testing.checks import compilers

from contract import blocks, subject

pytestmark = blocks


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.capability("compile")
def test_compiles_without_a_break(name: str, train: bool) -> None:
    compilers.compiles(subject(name), [train])


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
@pytest.mark.capability("dynamic")
def test_no_size_is_compiled_twice(name: str, dynamic: bool | None) -> None:
    """Told that sizes vary: one compilation; left to find out: one more, for the second size."""
    assert compilers.dynamic(subject(name), [dynamic]) is None


@pytest.mark.slow
@pytest.mark.capability("inductor")
def test_compiles_with_inductor(name: str) -> None:
    assert compilers.inductor(subject(name)) is None
