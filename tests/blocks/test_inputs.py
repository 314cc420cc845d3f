"""Capabilities of inputs: sizes, strides, memory formats, side effects, independent samples."""

import pytest

from attnzoo.testing.checks import calls, numbers, samples, state
from attnzoo.testing.outcome import Check
from attnzoo.testing.subject import registered

from contract import blocks, subject
from matrix import Cell

pytestmark = blocks
modes = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


@modes
@pytest.mark.capability("batch")
def test_batches_of_one_and_zero(name: str, train: bool, cell: Cell) -> None:
    refusal = calls.batch(subject(name), [train])
    if refusal is None:
        assert calls.empty_batch(subject(name), [train]) is None
    cell.record(refusal)


@pytest.mark.capability("sizes")
def test_any_size(name: str, cell: Cell) -> None:
    cell.record(calls.sizes(subject(name)) or calls.tiny(subject(name)))


@pytest.mark.parametrize("kind", calls.STRIDES)
@pytest.mark.capability("strides")
def test_strides_do_not_change_results(name: str, kind: str) -> None:
    calls.strides(subject(name), [kind])


@pytest.mark.capability("channels_last")
def test_channels_last_is_kept(name: str, cell: Cell) -> None:
    cell.record(calls.channels_last(subject(name)))


@pytest.mark.capability("frozen")
def test_frozen_inputs_and_parameters(name: str) -> None:
    calls.frozen(subject(name))


@modes
@pytest.mark.capability("untouched")
def test_inputs_and_state_are_not_modified(name: str, train: bool) -> None:
    samples.untouched(subject(name), [train])


@pytest.mark.parametrize("value", samples.ISOLATED, ids=str)
@pytest.mark.capability("isolation")
def test_a_sample_does_not_depend_on_its_batch(name: str, value: float) -> None:
    assert samples.isolation(subject(name), [value]) is None


@pytest.mark.capability("modes")
def test_batch_norm_and_dropout_act_only_in_train_mode(name: str) -> None:
    samples.modes(subject(name))


@modes
@pytest.mark.capability("deterministic")
def test_two_steps_are_bitwise_equal(name: str, train: bool) -> None:
    samples.deterministic(subject(name), [train])


BASICS = (calls.runs, calls.dtype, calls.gradients, calls.device, calls.values, numbers.zeros)
ALONE = (samples.seed, samples.stateless, samples.causal, state.caches)


@pytest.mark.parametrize("check", BASICS, ids=lambda check: check.name)
def test_calls_of_the_example(name: str, check: Check) -> None:
    check(subject(name))


@pytest.mark.parametrize("check", ALONE, ids=lambda check: check.name)
def test_calls_have_no_side_effects(name: str, check: Check) -> None:
    check(subject(name))


def test_masks_hide_what_they_cover(name: str) -> None:
    """The first norm of ltae sees padding, as its authors' does, unless it is told not to."""
    config = {"padding_invariant": True} if name == "ltae" else {}
    samples.mask(registered(name, **config))
