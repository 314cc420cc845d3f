"""What a user adds to an inner layer acts: hooks, adapters, parametrizations, quantization.

A block may fold layers into other arithmetic only while they are plain. For every block and every
inner layer with parameters of its example, each change must do what it does where every layer is
called: in the block's reference form, which the changed block must equal.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attnzoo.autograd import reference_forms
from attnzoo.registry import Inputs
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import call, leaves, tensors

from contract import SMALL, blocks, inner_layers, made

# Where a layer of the example cannot move the output: one layer of attention looks one level up.
ACTING: dict[str, dict[str, Any]] = {"pyraformer": {"n_layers": 2}}


def pattern(y: Tensor) -> Tensor:
    """Numbers of y's shape that no norm, softmax or scale takes away again."""
    return torch.arange(y.numel(), dtype=y.dtype, device=y.device).cos().view(y.shape)


class Adapted(nn.Module):
    """A layer and what is trained beside it, as LoRA has it; no attribute of the layer's shows."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.beside = nn.Parameter(torch.full((1,), 0.3, dtype=next(base.parameters()).dtype))

    def forward(self, *args: Any) -> Tensor:
        y: Tensor = self.base(*args)
        return y + self.beside.to(y.dtype) * pattern(y)


class Shifted(nn.Module):
    """A parametrization that moves every number of a parameter."""

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter + 0.1 * pattern(parameter)


def in_place_of(block: nn.Module, path: str, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of the block with one inner layer changed."""
    changed = copy.deepcopy(block)
    parent, _, child = path.rpartition(".")
    setattr(changed.get_submodule(parent), child, change(changed.get_submodule(path)))
    return changed


def outputs(block: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return list(tensors(call(block, inputs)))


def assert_acts(block: nn.Module, changed: nn.Module, inputs: Inputs, what: str) -> None:
    """The change moves the output, to where it does with every layer called."""
    before, after = outputs(block, inputs), outputs(changed, inputs)
    moved = any(not torch.allclose(a, b, rtol=1e-6) for a, b in zip(after, before, strict=True))
    assert moved, f"{what} leaves the output as it was"
    every = copy.deepcopy(changed)
    for layer in inner_layers(every).values():
        layer.register_forward_hook(lambda *args: None)
    with reference_forms():
        assert_close(after, outputs(every, inputs))


def calls(block: nn.Module, inputs: Inputs, *paths: str) -> Counter[str]:
    """How often each kind of hook of these layers runs in a forward and a backward pass."""
    counted: Counter[str] = Counter()

    def count(kind: str, path: str) -> Callable[..., None]:
        def hook(*args: Any) -> None:
            seen = args[2] if kind == "backward" else args[1]
            if kind != "backward" or any(g is not None and bool(g.any()) for g in seen):
                counted[f"{path}, {kind}"] += 1

        return hook

    for path in paths:
        layer = block.get_submodule(path)
        layer.register_forward_hook(count("forward", path))
        layer.register_forward_pre_hook(count("before", path))
        layer.register_full_backward_hook(count("backward", path))
    pairs = [(o, pattern(o)) for o in tensors(call(block, leaves(inputs)))]
    torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
    return counted


@blocks
def test_hooks_of_every_inner_layer_run_as_often_as_where_every_layer_is_called(name: str) -> None:
    _, block, inputs = made(name, SMALL, torch.float64, **ACTING.get(name, {}))
    paths = inner_layers(block)
    with reference_forms():
        wanted = calls(copy.deepcopy(block), inputs, *paths)
    for path in paths:
        found = calls(copy.deepcopy(block), inputs, path)
        for kind in ("forward", "before", "backward"):
            assert found[f"{path}, {kind}"] == wanted[f"{path}, {kind}"] >= 1, (path, kind)


@blocks
def test_an_adapter_in_the_place_of_any_inner_layer_acts_and_learns(name: str) -> None:
    _, block, inputs = made(name, SMALL, torch.float64, **ACTING.get(name, {}))
    for path in inner_layers(block):
        changed = in_place_of(block, path, Adapted)
        assert_acts(block, changed, inputs, f"an adapter at {path}")
        sum((o * pattern(o)).sum() for o in tensors(call(changed, inputs))).backward()
        gradient = changed.get_submodule(path).beside.grad
        assert gradient is not None and gradient.any(), path


@blocks
def test_a_layer_of_another_class_in_the_place_of_any_inner_layer_is_called(name: str) -> None:
    _, block, inputs = made(name, SMALL, torch.float64, **ACTING.get(name, {}))

    def replaced(layer: nn.Module) -> nn.Module:
        def forward(self: nn.Module, *args: Any) -> Tensor:
            y: Tensor = 2 * original(self, *args)
            return y + pattern(y)

        original = type(layer).forward
        layer.__class__ = type("Replaced", (type(layer),), {"forward": forward})
        return layer

    def patched(layer: nn.Module) -> nn.Module:
        forward = layer.forward
        layer.forward = lambda *args: forward(*args) + pattern(forward(*args))
        return layer

    for path in inner_layers(block):
        for change in (replaced, patched):
            changed = in_place_of(block, path, change)
            assert_acts(block, changed, inputs, f"{change.__name__} {path}")


@blocks
def test_a_parametrization_of_any_inner_layer_acts(name: str) -> None:
    _, block, inputs = made(name, SMALL, torch.float64, **ACTING.get(name, {}))

    def parametrized(layer: nn.Module) -> nn.Module:
        for key, _ in list(layer.named_parameters()):
            parametrize.register_parametrization(layer, key, Shifted())
        return layer

    for path in inner_layers(block):
        changed = in_place_of(block, path, parametrized)
        assert_acts(block, changed, inputs, f"a parametrization of {path}")


@pytest.mark.filterwarnings("ignore:.*(torch.ao.quantization|quantize|TypedStorage|reduce_range)")
@blocks
def test_linear_layers_quantize_dynamically(name: str) -> None:
    _, block, inputs = made(name, SMALL)
    quantized = torch.ao.quantization.quantize_dynamic(block, {nn.Linear}, torch.qint8)
    for found, exact in zip(outputs(quantized, inputs), outputs(block, inputs), strict=True):
        assert (found - exact).norm() <= 0.1 * exact.norm()
    linear = [m for m in inner_layers(block).values() if type(m) is nn.Linear]
    if linear:
        pairs = zip(outputs(quantized, inputs), outputs(block, inputs), strict=True)
        assert not all(torch.equal(found, exact) for found, exact in pairs)
