"""Capabilities of inputs: sizes, strides, memory formats; no side effects; independent samples."""

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.registry import Entry, Inputs, InputSize, find
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import call, leaves, map_tensors, samples, tensors

from contract import ODD, SINGLE, SMALL, blocks, made, step
from matrix import Cell

pytestmark = blocks
modes = pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])


def whole_step(block: nn.Module, inputs: Inputs) -> None:
    """Assert that one step gives finite outputs and every gradient."""
    found = step(block, inputs)
    assert all(t.isfinite().all() for t in tensors(found))
    assert len(found["parameters"]) == len(list(block.parameters()))
    assert len(found["inputs"]) == sum(t.is_floating_point() for t in tensors(inputs))


@modes
@pytest.mark.capability("batch")
def test_batches_of_one_and_zero(name: str, train: bool, cell: Cell) -> None:
    _, block, inputs = made(name, SINGLE, train=train)
    nothing = samples(block, inputs, slice(0))
    try:
        whole_step(block, inputs)
    except ValueError as error:
        assert train, error
        cell.refused(error)
        return
    try:
        whole_step(block, nothing)
    except ValueError as error:  # an empty batch has no statistics
        assert train and "BatchNorm" in str(error), error
    else:
        pairs = zip(tensors(call(block, inputs)), tensors(call(block, nothing)), strict=True)
        assert all(none.shape == (0, *one.shape[1:]) for one, none in pairs)


SIZES = {
    "small": SMALL,
    "odd": ODD,
    "1x1": InputSize(batch=2, steps=1, height=1, width=1),
    "1xN": InputSize(batch=2, steps=2, height=1, width=9),
    "Nx1": InputSize(batch=2, steps=3, height=9, width=1),
}


@pytest.mark.capability("sizes")
def test_any_size(name: str, cell: Cell) -> None:
    at = find(name).input_size
    larger = InputSize(2, 2 * at.steps + 1, 2 * at.height + 1, at.width + 3)
    _, block, inputs = made(name, at)
    if shapes(made(name, larger)[2]) == shapes(inputs):  # example inputs have only one size
        with pytest.raises(ValueError) as refusal:
            call(block, map_tensors(grown, inputs))
        cell.refused(refusal.value)
        return
    refused = []
    for extent, train in itertools.product((*SIZES.values(), larger), (False, True)):
        _, block, inputs = made(name, extent, train=train)
        try:
            whole_step(block, inputs)
        except ValueError as error:
            refused.append(error)
    if refused:
        cell.refused(refused[0])


def shapes(inputs: Inputs) -> list[torch.Size]:
    """The shape of one sample of each input."""
    return [t.shape[1:] for t in tensors(inputs)]


def grown(tensor: Tensor) -> Tensor:
    """The tensor with one more step of a sequence (B, T, C), or row and column of an image."""
    return nn.functional.pad(tensor, (0, 0, 0, 1) if tensor.ndim == 3 else (0, 1, 0, 1))


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    "sliced": lambda t: torch.stack((t, t), -1)[..., 1],
    "expanded": lambda t: t[:1].expand(t.shape),
    "expanded inside": lambda t: t.narrow(-1, 0, 1).expand(t.shape),
}


@pytest.mark.parametrize("kind", STRIDES)
@pytest.mark.capability("strides")
def test_strides_do_not_change_results(name: str, kind: str) -> None:
    _, block, inputs = made(name, ODD)
    change = STRIDES[kind]
    found = step(block, inputs, lambda points: call(block, map_tensors(change, points)))
    plain = step(
        block,
        inputs,
        lambda points: call(block, map_tensors(lambda t: change(t).contiguous(), points)),
    )
    assert_close(found, plain)


IMAGES = ("image", "features", "pair", "upsampler")  # layouts of one or several (B, C, H, W)


@pytest.mark.capability("channels_last")
def test_channels_last_is_kept(name: str, cell: Cell) -> None:
    layout = find(name).layouts[0]
    dtypes = (torch.float32, torch.float64)
    for train, dtype in itertools.product((False, True), dtypes):
        _, block, inputs = made(name, ODD, dtype, train)
        if layout not in IMAGES or all(t.ndim != 4 for t in tensors(inputs)):
            cell.not_applicable("it takes no image (B, C, H, W)")
            return
        state = copy.deepcopy(block.state_dict())
        wanted = step(block, inputs)
        block.load_state_dict(state)
        found = step(block, map_tensors(_channels_last, inputs))
        # The gradient of a bias before train-mode BatchNorm is only rounding: less in float64.
        if not train or dtype == torch.float64:
            assert_close(found, wanted)
        with torch.no_grad():
            without_grad = tensors(call(block, map_tensors(_channels_last, inputs)))
        for output in (*found["outputs"], *without_grad):
            preserved = output.is_contiguous(memory_format=torch.channels_last)
            assert output.ndim != 4 or preserved, (train, output.stride())


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.ndim != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.capability("frozen")
def test_frozen_inputs_and_parameters(name: str) -> None:
    _, block, inputs = made(name, ODD)
    wanted = step(block, inputs)
    found = step(block, inputs, lambda points: call(block, map_tensors(Tensor.detach, points)))
    assert not found["inputs"]
    assert_close(found["parameters"], wanted["parameters"])
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert_close(list(tensors(call(block, inputs))), wanted["outputs"])
    found = step(block.requires_grad_(False), inputs)
    assert not found["parameters"]
    assert_close(found["inputs"], wanted["inputs"])


@modes
@pytest.mark.capability("untouched")
def test_inputs_and_state_are_not_modified(name: str, train: bool) -> None:
    _, block, inputs = made(name, ODD, train=train)
    points = leaves(inputs)
    before, state = copy.deepcopy(inputs), copy.deepcopy(block.state_dict())
    versions = [t._version for t in tensors(points)]
    sum(t.square().sum() for t in tensors(call(block, points))).backward()
    assert [t._version for t in tensors(points)] == versions
    with torch.no_grad():
        call(block, points)
    assert [t._version for t in tensors(points)] == versions
    same(points, before)
    for key, value in block.state_dict().items():
        running = train and key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert running or torch.equal(value, state[key]), key


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30], ids=str)
@pytest.mark.capability("isolation")
def test_a_sample_does_not_depend_on_its_batch(name: str, value: float) -> None:
    _, block, inputs = made(name, ODD, dtype=torch.float64)

    def poison(tensor: Tensor) -> None:
        if tensor.is_floating_point():
            tensor.fill_(value)

    alone = list(tensors(call(block, samples(block, inputs, slice(1)))))
    poisoned = map_tensors(Tensor.clone, inputs)
    map_tensors(poison, samples(block, poisoned, slice(1, None)))
    for others in (inputs, poisoned):
        for train_step in (False, True):
            together = tensors(call(block, leaves(others) if train_step else others))
            assert_close([t.detach()[:1] for t in together], alone)


@pytest.mark.capability("modes")
def test_batch_norm_and_dropout_act_only_in_train_mode(name: str) -> None:
    entry, block, inputs = made(name, ODD, **_dropout(name, 0.0))
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    quiet = list(tensors(call(block, inputs)))
    state = copy.deepcopy(block.state_dict())
    assert all(norm.num_batches_tracked == 0 for norm in norms)
    trained = list(tensors(call(block.train(), inputs)))
    if not norms:
        assert_close(trained, quiet)
    for norm in norms:
        assert norm.num_batches_tracked == 1
        assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
    if "dropout" in entry.signature.parameters:
        _dropout_acts(entry, state, inputs, quiet, trained)


def _dropout(name: str, rate: float) -> dict[str, float]:
    return {"dropout": rate} if "dropout" in find(name).signature.parameters else {}


def _dropout_acts(
    entry: Entry, state: dict[str, Tensor], inputs: Inputs, quiet: list, trained: list
) -> None:
    block = attnzoo.build(entry.name, **{**entry.example, "dropout": 0.5})
    block.load_state_dict(state)
    assert_close(list(tensors(call(block.eval(), inputs))), quiet)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        block.load_state_dict(state)
        drawn.append(list(tensors(call(block.train(), inputs))))
    same(drawn[0], drawn[1])
    assert not all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(drawn[0], trained, strict=True))


@modes
@pytest.mark.capability("deterministic")
def test_two_steps_are_bitwise_equal(name: str, train: bool) -> None:
    _, block, inputs = made(name, ODD, train=train)
    state = copy.deepcopy(block.state_dict())
    found = []
    for strict in (False, False, True):
        torch.manual_seed(0)
        block.load_state_dict(state)
        torch.use_deterministic_algorithms(strict)  # also fills new memory with NaN
        try:
            found.append(step(block, inputs))
        finally:
            torch.use_deterministic_algorithms(False)
    same(found[1], found[0])
    same(found[2], found[0])


def same(found: object, wanted: object) -> None:
    """Assert that all tensors are bitwise equal."""
    for a, b in zip(tensors(found), tensors(wanted), strict=True):
        assert torch.equal(a.detach(), b.detach())
