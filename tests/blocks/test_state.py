"""Capabilities of state: copies, files, the meta device, functional calls, checkpointing."""

import copy
import io
import pickle
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

import attnzoo
from attnzoo.registry import Inputs
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import arguments, batch_axis, call, map_tensors, samples, tensors

from contract import ODD, blocks, made, step

pytestmark = blocks


@pytest.mark.capability("copy")
def test_copies_and_pickles_equal_the_block(name: str) -> None:
    _, block, inputs = made(name, ODD)
    wanted = step(block, inputs)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert repr(twin) == repr(block)
        assert_close(step(twin, inputs), wanted)


@pytest.mark.capability("state_dict")
def test_state_dicts_restore_the_block(name: str) -> None:
    entry, block, inputs = made(name, ODD, train=True)
    step(block, inputs)  # updates running statistics
    state = block.eval().state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    for loaded in (saved, safetensors.torch.load(safetensors.torch.save(state))):
        fresh = attnzoo.build(name, **entry.example).eval()
        fresh.load_state_dict(loaded, strict=True)
        assert_close(step(fresh, inputs), step(block, inputs))


@pytest.mark.capability("meta")
def test_meta_build_materializes(name: str) -> None:
    entry, block, inputs = made(name, ODD)
    on_meta = attnzoo.build(name, **entry.example, device="meta")
    assert all(t.is_meta for t in (*on_meta.parameters(), *on_meta.buffers()))
    torch.use_deterministic_algorithms(True)  # fills memory that is never loaded with NaN
    try:
        real = on_meta.to_empty(device="cpu").eval()
    finally:
        torch.use_deterministic_algorithms(False)
    real.load_state_dict(block.state_dict())
    assert_close(step(real, inputs), step(block, inputs))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # vmap's own
@pytest.mark.capability("functional")
def test_functional_calls_and_per_sample_gradients(name: str) -> None:
    _, block, inputs = made(name, ODD)
    state = {key: value.detach() for key, value in block.named_parameters()}
    wanted = list(tensors(call(block, inputs)))
    assert_close(list(tensors(_outputs(block, state, inputs))), wanted)

    axes = {key: batch_axis(block, key) for key in inputs}

    def one(state: dict[str, Tensor], sample: Inputs) -> list[Tensor]:
        batch: Inputs = {}
        for key, axis in axes.items():
            batch |= map_tensors(lambda t, axis=axis: t.unsqueeze(axis), {key: sample[key]})
        return [t[0] for t in tensors(_outputs(block, state, batch))]

    def loss(state: dict[str, Tensor], sample: Inputs) -> Tensor:
        return _loss(one(state, sample))

    assert_close(vmap(one, (None, axes))(state, inputs), wanted)
    if not state:
        return  # without parameters there are no gradients to compare
    found = vmap(grad(loss), (None, axes))(state, inputs)
    for i in range(ODD.batch):
        block.zero_grad()
        _loss(call(block, samples(block, inputs, slice(i, i + 1)))).backward()
        assert_close(
            {key: value[i] for key, value in found.items()},
            {key: value.grad for key, value in block.named_parameters()},
        )


def _loss(outputs: Any) -> Tensor:
    return sum((t.sin().sum() for t in tensors(outputs)), torch.zeros(()))


def _outputs(block: torch.nn.Module, state: dict[str, Tensor], inputs: Inputs) -> Any:
    return functional_call(block, state, *arguments(block, inputs))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
@pytest.mark.capability("checkpoint")
def test_checkpointing_changes_nothing(name: str, reentrant: bool, train: bool) -> None:
    _, block, inputs = made(name, ODD, train=train)
    torch.manual_seed(3)  # the same dropout masks
    wanted = step(block, inputs)

    def run(leaves: Inputs) -> Any:
        flat = list(tensors(leaves))

        def again(*given: Tensor) -> Any:
            rest = iter(given)
            return call(block, map_tensors(lambda _: next(rest), leaves))

        return checkpoint(again, *flat, use_reentrant=reentrant)

    torch.manual_seed(3)
    assert_close(step(block, inputs, run), wanted)
