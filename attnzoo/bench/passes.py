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
    inputs: Inputs
    wanted: dict[str, Tensor]  # leaves, by the name of their gradient
    grads: list[Tensor]  # fixed gradients of the outputs that want one
    passes: Passes
    uncaptured: Passes  # the same before a CUDA graph took over their memory
    eager: Passes  # the same before a compiler took them over: what can be counted
    compile_seconds: float | None


def bind(entry: Entry, block: nn.Module, inputs: Inputs, settings: Settings) -> Bound:
    """Compile or capture where asked for, and call every pass once, so that all shapes are warm."""
    wanted = {f"gradient of input {i}": t for i, t in enumerate(tensors(inputs)) if t.requires_grad}
    for key, parameter in block.named_parameters():
        if parameter.requires_grad:
            wanted[f"gradient of the parameter {key}"] = parameter
    grads: list[Tensor] = []
    eager = passes = _passes(block, block, inputs, wanted, grads, settings)
    if settings.mode == "compiled":
        passes = _passes(block, _compiled(entry, block), inputs, wanted, grads, settings)
    start = time.perf_counter()
    for one in reversed(passes):
        with one.ready() as step:
            step()
    seconds = time.perf_counter() - start if settings.mode == "compiled" else None
    uncaptured = passes
    if settings.mode == "cudagraph":
        passes = Passes(*(_captured(one, settings.device) for one in passes))
    return Bound(block, inputs, wanted, grads, passes, uncaptured, eager, seconds)


def _passes(
    block: nn.Module,
    run: nn.Module,
    inputs: Inputs,
    wanted: dict[str, Tensor],
    grads: list[Tensor],
    settings: Settings,
) -> Passes:
    """The passes of `run`, the block or what a compiler made of it; the first draws `grads`."""
    positional, keywords = arguments(block, inputs)

    def forward() -> Any:
        with settings.precision():
            return run(*positional, **keywords)

    def training() -> tuple[Any, tuple[Tensor | None, ...]]:
        output = forward()
        if not grads:
            grads.extend(torch.randn_like(t) for t in tensors(output) if t.requires_grad)
        return output, derived(output, list(wanted.values()), grads)

    return Passes(
        Pass(block, False, forward), Pass(block, True, forward), Pass(block, True, training)
    )


def _compiled(entry: Entry, block: nn.Module) -> nn.Module:
    torch.compiler.reset()  # a run of many rows must not end at the limit of recompilations
    # Without its caches, else compile_seconds tells of an earlier run.
    options: dict[str, Any] = {"force_disable_caches": True}
    whole = WHOLE_GRAPH not in entry.limits
    return torch.compile(block, dynamic=False, fullgraph=whole, options=options)  # type: ignore[return-value]


def _captured(one: Pass, device: str) -> Pass:
    with one.ready() as step:
        return replace(one, step=cuda.captured(step, device))
