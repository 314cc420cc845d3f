"""Capabilities under compilers: no break, one compilation for all sizes, eager's numbers."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch._dynamo.backends.registry import lookup_backend

import attnzoo
from attnzoo.bench.workload import make_inputs

from contract import ODD, blocks, call_like, made, step
from tolerances import assert_close

pytestmark = blocks


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.capability("compile")
def test_compiles_without_a_break(name: str, train: bool) -> None:
    _, block, inputs = made(name, ODD, train=train)
    state = copy.deepcopy(block.state_dict())
    torch.manual_seed(3)
    wanted = step(block, inputs)
    block.load_state_dict(state)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    assert_close(step(block, inputs, lambda leaves: call_like(block, compiled, leaves)), wanted)


SHAPES = (ODD, attnzoo.Extent(2, 24, 14, 16), attnzoo.Extent(5, 8, 7, 6))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
def test_no_size_is_compiled_twice(name: str, dynamic: bool | None) -> None:
    """Told that sizes vary: one compilation; left to find out: one more, for the second size."""
    entry, block, _ = made(name)
    graphs = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, example)

    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend=backend)
    for extent in SHAPES:
        inputs = make_inputs(entry, dict(entry.example), extent)
        wanted = step(block, inputs)
        found = step(block, inputs, lambda leaves: call_like(block, compiled, leaves))
        assert_close(found, wanted)
    assert len(graphs) == (1 if dynamic else 2)


@pytest.mark.slow
@pytest.mark.capability("inductor")
def test_compiles_with_inductor(name: str) -> None:
    _, block, inputs = made(name)
    wanted = step(block, inputs)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own advice and deprecations
        found = step(block, inputs, lambda leaves: call_like(block, compiled, leaves))
    assert_close(found, wanted)
