"""Capabilities of state: copies, files, the meta device, functional calls, checkpointing."""

import pytest

from attnzoo.testing.checks import state

from contract import blocks, subject

pytestmark = blocks


@pytest.mark.capability("copy")
def test_copies_and_pickles_equal_the_block(name: str) -> None:
    state.deepcopy(subject(name))
    state.pickled(subject(name))


@pytest.mark.capability("state_dict")
def test_state_dicts_restore_the_block(name: str) -> None:
    state.state_dict(subject(name))
    state.held(subject(name))
    state.tied(subject(name))


@pytest.mark.capability("meta")
def test_meta_build_materializes(name: str) -> None:
    assert state.meta(subject(name)) is None


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap's own
@pytest.mark.capability("functional")
def test_functional_calls_and_per_sample_gradients(name: str) -> None:
    assert state.functional(subject(name)) is None


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@pytest.mark.capability("checkpoint")
def test_checkpointing_changes_nothing(name: str, reentrant: bool, train: bool) -> None:
    state.checkpoint(subject(name), [reentrant], [train])
