"""Capabilities under torch.compile: no graph breaks, no recompilation for new sizes."""

import copy
import warnings

import pytest
import torch
from torch.fx.experimental import _config as fx_config

import attnzoo
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import make_inputs

from contract import ODD, blocks, call_like, made, step

pytestmark = blocks


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.capability("compile")
def test_compiles_without_a_graph_break(name: str, train: bool) -> None:
    _, block, inputs = made(name, ODD, train=train)
    state = copy.deepcopy(block.state_dict())
    torch.manual_seed(3)
    wanted = step(block, inputs)
    block.load_state_dict(state)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    assert_close(step(block, inputs, lambda leaves: call_like(block, compiled, leaves)), wanted)


SHAPES = (
    ODD,
    attnzoo.InputSize(batch=2, steps=24, height=14, width=16),
    attnzoo.InputSize(batch=5, steps=24, height=14, width=16),  # only the batch changes
    attnzoo.InputSize(batch=5, steps=17, height=8, width=8),  # only the size changes
)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
@pytest.mark.capability("dynamic")
@fx_config.patch(use_duck_shape=False)  # sizes that are equal at first may differ later
def test_new_sizes_are_not_recompiled(name: str, dynamic: bool | None) -> None:
    """With dynamic=True there is one compilation; by default a second one at the second size."""
    # The gradient of a bias before train-mode BatchNorm is only rounding: less in float64.
    entry, block, _ = made(name, dtype=torch.float64, train=dynamic is True)
    torch.compiler.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for count, extent in enumerate(SHAPES):
        inputs = make_inputs(entry, dict(entry.example), extent, dtype=torch.float64)
        torch.manual_seed(3)
        wanted = step(block, inputs)
        known = count >= (1 if dynamic else 2)
        torch.manual_seed(3)
        with torch.compiler.set_stance("fail_on_recompile" if known else "default"):
            found = step(block, inputs, lambda leaves: call_like(block, compiled, leaves))
        assert_close(found, wanted)


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
