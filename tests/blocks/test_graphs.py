"""Graph tools on every block: symbolic traces take it as one node, `torch.jit.script` refuses."""

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import fx, nn

from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import arguments, tensors

from contract import SMALL, blocks, made

pytestmark = blocks


class Around(nn.Module):
    """A network that calls a block with what it finds in its input."""

    def __init__(self, block: nn.Module, positional: int, keywords: list[str]) -> None:
        super().__init__()
        self.inner = nn.Sequential(block)
        self.positional, self.keywords = positional, keywords

    def forward(self, inputs: Any) -> Any:
        found = [inputs[i] for i in range(self.positional)]
        return self.inner[0](*found, **{key: inputs[key] for key in self.keywords})


def test_a_symbolic_trace_takes_the_block_as_one_node(name: str) -> None:
    _, block, inputs = made(name, SMALL)
    block.eval()
    positional, keywords = arguments(block, inputs)
    net = Around(block, len(positional), list(keywords))
    keys = list(block.state_dict())
    with torch.no_grad():
        wanted = list(tensors(block(*positional, **keywords)))
        alone = fx.symbolic_trace(block)
        assert_close(list(tensors(alone(*positional, **keywords))), wanted)
        assert list(block.state_dict()) == keys
        assert len(list(alone.parameters())) == len(list(block.parameters()))

        traced = fx.symbolic_trace(net)
        (node,) = (n for n in traced.graph.nodes if n.op == "call_module")
        assert node.target == "inner.0"
        assert traced.state_dict().keys() == net.state_dict().keys()
        given = dict(enumerate(positional)) | keywords
        assert_close(list(tensors(copy.deepcopy(traced)(given))), wanted)


def test_scripting_is_refused_in_words(name: str) -> None:
    block = made(name)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch warn of scripting itself
        with pytest.raises(ValueError, match=rf"cannot compile '{name}'.*torch\.export"):
            torch.jit.script(Around(block, 1, []))
