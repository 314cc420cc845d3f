"""Random constructor and forward calls give a correct output or a clear error."""

import copy
import datetime
import inspect
import re
import resource
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import CORRUPTIONS, Call, calls
from hypothesis import HealthCheck, given, settings
from torch import nn

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.registry import Inputs, find
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import make_inputs, randomize_parameters, tensors

from contract import blocks

PACKAGE = Path(attnzoo.__file__).parent
LARGEST = 20_000  # elements of an input; larger ones are legal, but would take too long
MEMORY = 8 * 2**30  # bytes that a test may allocate, so that a huge allocation fails

fuzzed = settings(
    database=None,
    derandomize=True,
    deadline=datetime.timedelta(seconds=30),
    max_examples=15,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def _mapped() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@blocks
def test_calls_work_or_raise_clear_errors(name: str) -> None:
    fuzzed(given(calls(name))(check))()


@pytest.mark.slow
@blocks
def test_ten_thousand_calls_work_or_raise_clear_errors(name: str) -> None:
    each = -(-10_000 // len(attnzoo.names()))
    settings(fuzzed, max_examples=each)(given(calls(name))(check))()


def check(case: Call) -> None:
    """Assert that the call gives a correct output or raises a clear error."""
    torch.manual_seed(0)
    try:
        block = build(case)
        inputs = arranged(case, block)
        if inputs is None:
            return
        before, twin = copy.deepcopy((inputs, block))
        outputs = run(block, inputs, case)
    except Exception as error:
        refused(error, case)
        return
    unchanged = zip(tensors(inputs), tensors(before), strict=True)
    assert all(torch.equal(a, b) for a, b in unchanged if not a.is_meta)
    correct(case, block, twin, inputs, outputs)


def build(case: Call) -> nn.Module:
    """The block, built by name or by class, with random parameters."""
    make: Any = find(case.name).cls if case.direct else attnzoo.build
    block: nn.Module = make(**case.config) if case.direct else make(case.name, **case.config)
    randomize_parameters(block)
    return block.to(case.dtype).train(case.train)


def arranged(case: Call, block: nn.Module) -> Inputs | None:
    """The inputs of the call, or None if they are too large to run."""
    entry = find(case.name)
    settings = dict(case.config)
    on_meta = make_inputs(entry, settings, case.input_size, device="meta")
    if sum(t.numel() for t in tensors(on_meta)) > LARGEST:
        return None
    inputs: dict[str, Any] = make_inputs(entry, settings, case.input_size, dtype=case.dtype)
    x = next(tensors(inputs))
    places = {"steps": x.shape[-2:-1], "batch and steps": x.shape[:2]}
    for key, value in case.extras.items():
        inputs[key] = (
            torch.zeros(places[value]) if isinstance(value, str) and value in places else value
        )
    if case.corrupt is None:
        return inputs
    index, kind = case.corrupt
    return replaced(inputs, index, CORRUPTIONS[kind])


def replaced(inputs: Inputs, index: int, change: Any) -> Inputs:
    """The inputs with one tensor changed."""
    chosen = list(tensors(inputs))[index % max(1, len(list(tensors(inputs))))]

    def walk(value: Any) -> Any:
        if isinstance(value, list):
            return [walk(item) for item in value]
        return change(value) if value is chosen else value

    return {key: walk(value) for key, value in inputs.items()}


def run(block: nn.Module, inputs: Inputs, case: Call) -> list[torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
        return list(tensors(block(**inputs)))


def refused(error: Exception, case: Call) -> None:
    """Assert that the error is raised by attnzoo and names the argument, its value and the rule."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(place.filename).is_relative_to(PACKAGE)
    if not (isinstance(error, (ValueError, TypeError)) and ours):
        raise error
    text, cls = str(error), find(case.name).cls
    known = {*inspect.signature(cls).parameters, *inspect.signature(cls.forward).parameters}
    assert any(re.search(rf"\b{key}\b", text) for key in known - {"self"}), text
    assert re.search(r"[\d='(]", text), text
    assert 20 < len(text) < 1000, text


def correct(
    case: Call, block: nn.Module, twin: nn.Module, inputs: Inputs, outputs: list[torch.Tensor]
) -> None:
    """Assert that outputs and gradients are finite, and outputs equal the reference in float64."""
    first = next(tensors(inputs))
    floating = [t for t in tensors(inputs) if t.is_floating_point()]
    if first.is_meta or not all(t.isfinite().all() for t in floating):
        return
    assert all(o.isfinite().all() for o in outputs)
    if not case.autocast:
        assert all(o.dtype == first.dtype for o in outputs)
        graph = [o for o in outputs if o.requires_grad]
        wanted = [p for p in block.parameters() if p.requires_grad]
        grads = (
            torch.autograd.grad(sum(o.sum() for o in graph), wanted, allow_unused=True)
            if graph
            else ()
        )
        assert all(g is None or g.isfinite().all() for g in grads)
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
    rates = [m.p for m in block.modules() if isinstance(m, kinds)]
    noisy = case.train and any([*rates, getattr(block, "dropout", None)])
    if noisy or case.autocast or first.dtype.itemsize == 2:  # half precision is compared elsewhere
        return
    with reference_forms(), torch.no_grad():
        exact = list(tensors(twin.double()(**doubled(inputs))))
    assert_close(outputs, exact, first.dtype)


def doubled(value: Any) -> Any:
    """The same structure with every floating-point tensor in float64."""
    if isinstance(value, dict):
        return {key: doubled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [doubled(item) for item in value]
    return (
        value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
    )
