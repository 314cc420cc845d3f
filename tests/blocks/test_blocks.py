"""Requirements on every registered block."""

import contextlib
import copy
import inspect
import json

import pytest
import torch

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.registry import find
from attnzoo.testing.checks import calls, samples
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import call, leaves, tensors
from attnzoo.testing.subject import registered

from contract import ODD, blocks, made, step, subject

pytestmark = blocks


def test_example_runs_and_keeps_the_dtype(name: str) -> None:
    example = registered(name, find(name).input_size)
    calls.runs(example)
    calls.dtype(example)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_hand_written_passes_equal_the_reference_form(name: str, train: bool) -> None:
    for extent in (None, ODD):
        _, block, inputs = made(name, extent, dtype=torch.float64, train=train)
        state = copy.deepcopy(block.state_dict())
        by_hand = step(block, inputs)
        block.load_state_dict(state)
        with reference_forms():
            plain = step(block, inputs)
        assert_close(by_hand, plain)


def test_gradients_with_create_graph_and_second_gradients(name: str) -> None:
    """By the hand-written passes and by the reference form."""
    _, block, inputs = made(name, dtype=torch.float64)
    found = []
    for context in (contextlib.nullcontext, reference_forms):
        points = leaves(inputs)
        wanted = [t for t in (*tensors(points), *block.parameters()) if t.requires_grad]
        with context():
            loss = sum(t.square().sum() for t in tensors(call(block, points)))
            bare = torch.autograd.grad(loss, wanted, retain_graph=True)
            first = torch.autograd.grad(loss, wanted, create_graph=True)
            again = sum((g * torch.linspace(0, 1, g.numel()).view_as(g)).sum() for g in first)
            second = torch.autograd.grad(again, wanted, allow_unused=True, materialize_grads=True)
        assert_close(list(first), list(bare))
        found.append([*first, *second])
    assert_close(*found)


def test_a_residual_can_be_added_to_outputs_in_place(name: str) -> None:
    assert samples.aliasing(subject(name)) is None


def test_config_is_json_and_unknown_keywords_are_refused(name: str) -> None:
    entry = find(name)
    again = json.loads(json.dumps(entry.example))
    attnzoo.build(name, **again)
    bound = entry.bind(**again)
    assert json.loads(json.dumps(bound)) is not None
    parameters = list(entry.signature.parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters)
    assert all(p.annotation is not p.empty for p in parameters)
    with pytest.raises(TypeError, match="its signature is") as caught:
        attnzoo.build(name, **again, reduktion=8)
    assert f"{name}(" in str(caught.value)


def test_invalid_inputs_raise_clear_errors(name: str) -> None:
    _, block, inputs = made(name)
    key, value = next(iter(inputs.items()))
    tensor = value[0] if isinstance(value, list) else value

    def with_first(bad: object) -> dict[str, object]:
        return {**inputs, key: [bad, *value[1:]] if isinstance(value, list) else bad}

    with torch.inference_mode():
        of_inference = tensor.clone()
    lazy, sparse = torch.nn.UninitializedParameter(), tensor.to_sparse()
    bads = [tensor.long(), tensor[..., 0].reshape(-1), None, lazy, sparse]
    if next(block.parameters(), None) is not None:  # else it has no dtype and saves no inputs
        bads += [tensor.double(), of_inference]
    for bad in bads:
        with pytest.raises((TypeError, ValueError)) as caught:
            call(block, with_first(bad))  # type: ignore[arg-type]
        assert len(str(caught.value)) > 20


def test_other_shapes_run_or_are_refused_in_words(name: str) -> None:
    _, block, inputs = made(name)
    for key, value in inputs.items():
        for i, tensor in enumerate(tensors(value)):
            for axis in range(1, tensor.ndim):
                wider = torch.cat((tensor, tensor.narrow(axis, 0, 1)), axis)
                bad = [*value[:i], wider, *value[i + 1 :]] if isinstance(value, list) else wider
                with contextlib.suppress(TypeError, ValueError):
                    call(block, {**inputs, key: bad})


def test_a_printed_block_shows_its_channels(name: str) -> None:
    entry, block, _ = made(name)
    own = entry.cls.__module__.startswith("attnzoo.")  # a user's block may print as it likes
    if own and entry.family != "network" and "c" in entry.signature.parameters:
        assert f"c={block.c}" in block.extra_repr()


def test_docstrings_have_every_section_and_argument(name: str) -> None:
    record = attnzoo.describe(name)
    for section in ("title", "paper", "code", "math", "shapes", "differs", "cost"):
        assert getattr(record, section), f"the file of {name!r} lacks {section}"
    doc = inspect.getdoc(find(name).cls)
    assert doc is not None
    assert all(f"{key}:" in doc for key in find(name).signature.parameters), "undocumented argument"
