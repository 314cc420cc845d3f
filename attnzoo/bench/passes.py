"""The calls of a row. The callables that are checked are the very ones that are timed."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..registry import Entry, Inputs
from ..testing.gradcheck import derived
from ..testing.inputs import arguments, tensors
from .settings import Settings
from .timing import cuda

WHOLE_GRAPH = "torch.compile(fullgraph=True)"


@dataclass(frozen=True)
class Pass:
    """One call on the whole batch, and the state that its block must be in."""

    block: nn.Module
    train: bool
    step: Callable[[], Any]

    @contextlib.contextmanager
    def ready(self) -> Iterator[Callable[[], Any]]:
        """Train mode with autograd recording, or eval mode under `torch.inference_mode`."""
        self.block.train(self.train)
        with torch.inference_mode(not self.train):
            yield self.step


class Passes(NamedTuple):
    """Forward in eval mode; forward, and forward with backward, in train mode."""

    forward: Pass
    train_forward: Pass
    training: Pass  # gives (output, gradients in the order of `wanted`)


@dataclass(frozen=True)
class Bound:
    """A block bound to its inputs: its passes, and what its training step derives."""

    block: nn.Module
    run: nn.Module  # the block, or what torch.compile made of it
    inputs: Inputs
    wanted: dict[str, Tensor]  # leaves that get a gradient, by name
    grads: list[Tensor]  # fixed gradients of the outputs that want one
    passes: Passes
    eager: Passes  # the same before a compiler or a graph took them over: what can be counted
    allocating: Pass  # the training step as it is before a graph takes over its memory
    compile_seconds: float | None


def bind(entry: Entry, block: nn.Module, inputs: Inputs, settings: Settings) -> Bound:
    """Compile or capture where asked for, and call every pass once, so that all shapes are warm."""
    run = block
    if settings.mode == "compiled":
        torch.compiler.reset()  # a run of many rows must not end at the limit of recompilations
        whole = WHOLE_GRAPH not in entry.limits
        # Without its caches, else compile_seconds tells of an earlier run.
        options: dict[str, Any] = {"force_disable_caches": True}
        run = torch.compile(block, dynamic=False, fullgraph=whole, options=options)  # type: ignore[assignment]
    wanted = {f"input {i}": t for i, t in enumerate(tensors(inputs)) if t.requires_grad}
    wanted |= {f"parameter {key}": p for key, p in block.named_parameters() if p.requires_grad}
    start = time.perf_counter()
    grads = _output_gradients(block, run, inputs, settings)
    passes = _passes(block, run, inputs, list(wanted.values()), grads, settings)
    for one in passes:
        with one.ready() as step:
            step()
    seconds = time.perf_counter() - start if settings.mode == "compiled" else None
    allocating = passes.training
    eager = passes
    if run is not block:
        eager = _passes(block, block, inputs, list(wanted.values()), grads, settings)
    if settings.mode == "cudagraph":
        passes = Passes(*(_captured(one, settings.device) for one in passes))
    return Bound(block, run, inputs, wanted, grads, passes, eager, allocating, seconds)


def _output_gradients(
    block: nn.Module, run: nn.Module, inputs: Inputs, settings: Settings
) -> list[Tensor]:
    positional, keywords = arguments(block, inputs)
    block.train()
    with settings.precision():
        output = run(*positional, **keywords)
    return [torch.randn_like(t) for t in tensors(output) if t.requires_grad]


def _passes(
    block: nn.Module,
    run: nn.Module,
    inputs: Inputs,
    wanted: list[Tensor],
    grads: list[Tensor],
    settings: Settings,
) -> Passes:
    positional, keywords = arguments(block, inputs)

    def forward() -> Any:
        with settings.precision():
            return run(*positional, **keywords)

    def training() -> tuple[Any, tuple[Tensor | None, ...]]:
        output = forward()
        return output, derived(output, wanted, grads)

    return Passes(
        Pass(block, False, forward), Pass(block, True, forward), Pass(block, True, training)
    )


def _captured(one: Pass, device: str) -> Pass:
    with one.ready() as step:
        return replace(one, step=cuda.captured(step, device))
