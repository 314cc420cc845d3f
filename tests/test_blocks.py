"""The contract of every registered block, whatever it computes."""

import contextlib
import copy
import inspect
import io
import json
import pickle
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import attnzoo
from attnzoo.bench import count
from attnzoo.bench.workload import call, make_inputs, tensors
from attnzoo.ops.by_hand import plain_forms
from attnzoo.registry import find

from contract import ODD, SINGLE, SMALL, blocks, first, made, step, wanting_grad
from tolerances import assert_close

pytestmark = blocks


def test_example_runs_and_keeps_the_dtype(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        _, block, inputs = made(name, dtype=dtype)
        for output in tensors(call(block, inputs)):
            assert output.dtype == dtype
            assert output.isfinite().all()


def test_closed_forms_equal_the_counts(name: str) -> None:
    entry = find(name)
    for extent in (entry.extent, ODD):
        block = attnzoo.build(name, **entry.example, device="meta")
        inputs = make_inputs(entry, dict(entry.example), extent, device="meta")
        form = entry.closed_form(extent, **entry.example)
        assert form is not None, "a block of the package states its cost"
        assert form.params == sum(p.numel() for p in block.parameters())
        assert form.macs == count.macs(block, inputs)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("extent", [SMALL, ODD, SINGLE], ids=["small", "odd", "single"])
def test_any_size_gives_finite_outputs_and_gradients(
    name: str, extent: attnzoo.Extent, train: bool
) -> None:
    _, block, inputs = made(name, extent, train=train)
    try:
        found = step(block, inputs)
    except ValueError as error:
        assert train, error
        assert "BatchNorm" in str(error), error
        return
    assert all(t.isfinite().all() for t in tensors(found))
    assert len(found["parameters"]) == len(list(block.parameters()))
    floating = [t for t in tensors(inputs) if t.is_floating_point()]
    assert len(found["inputs"]) == len(floating)


def test_smallest_inputs_work_or_say_why(name: str) -> None:
    tiny = attnzoo.Extent(batch=1, steps=1, height=1, width=1)
    for train in (False, True):
        try:
            _, block, inputs = made(name, tiny, train=train)
            found = step(block, inputs)
        except ValueError as error:
            assert len(str(error)) > 20
        else:
            assert all(t.isfinite().all() for t in tensors(found))


def test_empty_batch_gives_an_empty_output(name: str) -> None:
    _, block, inputs = made(name)
    whole, empty = call(block, inputs), call(block, first(inputs, 0))
    for a, b in zip(tensors(whole), tensors(empty), strict=True):
        assert b.numel() == 0
        assert a.ndim == b.ndim


def test_input_is_left_alone(name: str) -> None:
    _, block, inputs = made(name)
    before = copy.deepcopy(inputs)
    call(block, inputs)
    assert all(torch.equal(a, b) for a, b in zip(tensors(inputs), tensors(before), strict=True))


def test_strides_do_not_matter(name: str) -> None:
    _, block, inputs = made(name)
    strided = {
        key: [t.mT.contiguous().mT for t in value]
        if isinstance(value, list)
        else (value.mT.contiguous().mT if value.ndim > 1 else value)
        for key, value in inputs.items()
    }
    assert_close(step(block, strided), step(block, inputs))


def test_channels_last_does_not_matter(name: str) -> None:
    entry, block, inputs = made(name)
    if entry.layouts[0] != "image":
        inputs = {k: v for k, v in inputs.items() if not isinstance(v, list)}
    images = {k: v for k, v in inputs.items() if not isinstance(v, list) and v.ndim == 4}
    if not images or len(images) != len(inputs):
        return
    last = {k: v.contiguous(memory_format=torch.channels_last) for k, v in images.items()}
    assert_close(step(block, last), step(block, inputs))


def test_a_sample_does_not_see_its_batch(name: str) -> None:
    _, block, inputs = made(name, dtype=torch.float64)
    alone, together = call(block, first(inputs, 1)), call(block, inputs)
    for a, b in zip(tensors(alone), tensors(together), strict=True):
        axis = 0 if a.shape[0] == 1 else 1  # weights per head have the batch second
        assert_close(a, b.narrow(axis, 0, 1))


def test_eval_is_deterministic(name: str) -> None:
    _, block, inputs = made(name)
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors(call(block, inputs)), tensors(call(block, inputs)), strict=True)
    )


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_hand_written_passes_equal_the_plain_form(name: str, train: bool) -> None:
    for extent in (None, ODD):
        _, block, inputs = made(name, extent, dtype=torch.float64, train=train)
        state = copy.deepcopy(block.state_dict())
        by_hand = step(block, inputs)
        block.load_state_dict(state)
        with plain_forms():
            plain = step(block, inputs)
        assert_close(by_hand, plain)


@pytest.mark.capability("gradcheck")
def test_gradients_are_derivatives(name: str) -> None:
    """Of inputs and parameters; their derivatives in turn only of what is differentiated."""
    _, block, inputs = made(name, SMALL, dtype=torch.float64)
    leaves = wanting_grad(inputs)
    points = [t for t in (*tensors(leaves), *block.parameters()) if t.requires_grad]

    def run(*_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensors(call(block, leaves)))

    assert torch.autograd.gradcheck(run, points, fast_mode=True, atol=1e-6)
    assert torch.autograd.gradgradcheck(run, points, fast_mode=True, atol=1e-4)


def test_a_graph_of_the_gradients_leaves_them_as_they_are(name: str) -> None:
    """The gradient of the gradient, through the hand-written passes and the plain form."""
    _, block, inputs = made(name, dtype=torch.float64)
    found = []
    for context in (contextlib.nullcontext, plain_forms):
        leaves = wanting_grad(inputs)
        wanted = [t for t in (*tensors(leaves), *block.parameters()) if t.requires_grad]
        with context():
            loss = sum(t.square().sum() for t in tensors(call(block, leaves)))
            bare = torch.autograd.grad(loss, wanted, retain_graph=True)
            first = torch.autograd.grad(loss, wanted, create_graph=True)
            again = sum((g * torch.linspace(0, 1, g.numel()).view_as(g)).sum() for g in first)
            second = torch.autograd.grad(again, wanted, allow_unused=True, materialize_grads=True)
        assert_close(list(first), list(bare))
        found.append([*first, *second])
    assert_close(*found)


def test_outputs_take_a_residual_in_place(name: str) -> None:
    _, block, inputs = made(name, ODD)
    output = next(tensors(call(block, wanting_grad(inputs))))
    residual = torch.randn_like(output)
    assert torch.equal(output.detach() + residual, output.add_(residual).detach())


def test_checkpointing_changes_nothing(name: str) -> None:
    _, block, inputs = made(name)
    wanted = step(block, inputs)

    def run(leaves: dict[str, torch.Tensor]) -> object:
        return checkpoint(lambda: call(block, leaves), use_reentrant=False)

    assert_close(step(block, inputs, run), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_keeps_the_dtype_and_stays_finite(name: str, dtype: torch.dtype) -> None:
    _, block, inputs = made(name)
    wanted = step(block, inputs)
    half = {
        k: [_to(t, dtype) for t in v] if isinstance(v, list) else _to(v, dtype)
        for k, v in inputs.items()
    }
    found = step(block.to(dtype), half)
    assert all(t.dtype == dtype for t in tensors(found["outputs"]) if t.is_floating_point())
    assert all(t.isfinite().all() for t in tensors(found))
    assert_close(found["outputs"], wanted["outputs"], dtype)


def test_autocast_runs_and_trains(name: str) -> None:
    _, block, inputs = made(name)
    wanted = step(block, inputs)

    def run(leaves: dict[str, torch.Tensor]) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return call(block, leaves)

    found = step(block, inputs, run)
    assert all(t.isfinite().all() for t in tensors(found))
    assert_close(found["outputs"], wanted["outputs"], torch.bfloat16)


@pytest.mark.capability("compile")
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_compiles_without_a_break(name: str, train: bool) -> None:
    _, block, inputs = made(name, train=train)
    state = copy.deepcopy(block.state_dict())
    wanted = step(block, inputs)
    block.load_state_dict(state)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    found = step(block, inputs, lambda leaves: call_like(block, compiled, leaves))
    assert_close(found, wanted)


@pytest.mark.capability("inductor")
@pytest.mark.slow
def test_compiles_with_inductor(name: str) -> None:
    _, block, inputs = made(name)
    wanted = step(block, inputs)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own advice and deprecations
        found = step(block, inputs, lambda leaves: call_like(block, compiled, leaves))
    assert_close(found, wanted)


def call_like(block: torch.nn.Module, stand_in: object, inputs: dict[str, torch.Tensor]) -> object:
    """Call `stand_in` with the arguments arranged as `block.forward` wants them."""
    positional, keywords = arranged(block, inputs)
    return stand_in(*positional, **keywords)  # type: ignore[operator]


def arranged(block: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[tuple, dict]:
    kinds = inspect.signature(block.forward).parameters
    keywords = {k: v for k, v in inputs.items() if kinds[k].kind is inspect.Parameter.KEYWORD_ONLY}
    return tuple(v for k, v in inputs.items() if k not in keywords), keywords


@pytest.mark.capability("export")
def test_exports_with_dynamic_sizes(name: str) -> None:
    entry, block, inputs = made(name, ODD)
    positional, keywords = arranged(block, inputs)
    auto = torch.export.Dim.AUTO

    def dynamic(value: object) -> object:
        if isinstance(value, list):
            return [dynamic(item) for item in value]
        return dict.fromkeys(range(value.ndim), auto)  # type: ignore[attr-defined]

    names = list(inspect.signature(block.forward).parameters)
    shapes = {names[i]: dynamic(v) for i, v in enumerate(positional)}
    shapes |= {k: dynamic(v) for k, v in keywords.items()}
    program = torch.export.export(
        block, positional, keywords, dynamic_shapes=shapes, strict=False
    ).module()
    for extent in (None, ODD, attnzoo.Extent(4, 12, 10, 8)):
        other = make_inputs(entry, dict(entry.example), extent or entry.extent, seed=3)
        assert_close(call_like(block, program, other), call(block, other))


def test_copies_pickles_and_state_dicts_are_the_block(name: str) -> None:
    entry, block, inputs = made(name)
    wanted = step(block, inputs)
    file = io.BytesIO()
    torch.save(block.state_dict(), file)
    file.seek(0)
    fresh = attnzoo.build(name, **entry.example).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for twin in (copy.deepcopy(block), pickle.loads(pickle.dumps(block)), fresh):
        assert_close(step(twin, inputs), wanted)


def test_meta_build_materialises(name: str) -> None:
    entry, block, inputs = made(name)
    ghost = attnzoo.build(name, **entry.example, device="meta")
    assert all(p.is_meta for p in ghost.parameters())
    real = ghost.to_empty(device="cpu").eval()
    real.load_state_dict(block.state_dict())
    assert_close(call(real, inputs), call(block, inputs))


def test_config_is_json_and_the_signature_is_closed(name: str) -> None:
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


def test_bad_inputs_are_refused_in_words(name: str) -> None:
    _, block, inputs = made(name)
    key, value = next(iter(inputs.items()))
    tensor = value[0] if isinstance(value, list) else value

    def with_first(bad: object) -> dict[str, object]:
        return {**inputs, key: [bad, *value[1:]] if isinstance(value, list) else bad}

    for bad in (tensor.long(), tensor[..., 0].reshape(-1), None, tensor.double()):
        with pytest.raises((TypeError, ValueError)) as caught:
            call(block, with_first(bad))  # type: ignore[arg-type]
        assert len(str(caught.value)) > 20


def test_docstrings_say_all(name: str) -> None:
    record = attnzoo.describe(name)
    for section in ("title", "paper", "code", "math", "shapes", "differs", "cost"):
        assert getattr(record, section), f"the file of {name!r} lacks {section}"
    doc = inspect.getdoc(find(name).cls)
    assert doc is not None
    assert all(f"{key}:" in doc for key in find(name).signature.parameters), "undocumented argument"


def _to(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
