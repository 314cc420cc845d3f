"""Capabilities under torch.compile: no graph breaks, no recompilation for new sizes."""

import pytest

from attnzoo.testing.checks import compilers

from contract import blocks, subject

pytestmark = blocks


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.capability("compile")
def test_compiles_without_a_graph_break(name: str, train: bool) -> None:
    compilers.compiles(subject(name), [train])


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
@pytest.mark.capability("dynamic")
def test_new_sizes_are_not_recompiled(name: str, dynamic: bool | None) -> None:
    assert compilers.dynamic(subject(name), [dynamic]) is None


@pytest.mark.slow
@pytest.mark.capability("inductor")
def test_compiles_with_inductor(name: str) -> None:
    assert compilers.inductor(subject(name)) is None
