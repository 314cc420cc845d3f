"""The passes of a block that are checked, counted and timed."""

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
from .job import Settings
from .timing import cuda

WHOLE_GRAPH = "torch.compile(fullgraph=True)"


@dataclass(frozen=True)
class Pass:
    """One call on the whole batch, and the mode that its block must be in."""

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
    """Forward in eval mode, and forward with backward in train mode."""

    forward: Pass
    training: Pass  # returns (output, gradients in the order of `wanted`)


class Bound:
    """A block with its inputs, and the passes over them.

    Every pass has been called once, so that lazily made buffers and caches exist.
    """

    def __init__(self, entry: Entry, block: nn.Module, inputs: Inputs, settings: Settings) -> None:
        self.block, self.inputs, self.settings = block, inputs, settings
        leaves = {f"input {i}": t for i, t in enumerate(tensors(inputs))}
        leaves |= {f"the parameter {key}": p for key, p in block.named_parameters()}
        self.wanted = {f"gradient of {k}": t for k, t in leaves.items() if t.requires_grad}
        self.grads: list[Tensor] = []  # fixed gradients of the outputs, drawn by the first call
        compiled = settings.mode == "compiled"
        self.eager = self._passes(block)
        self.passes = self._passes(_compiled(entry, block)) if compiled else self.eager
        start = time.perf_counter()
        for one in reversed(self.passes):
            with one.ready() as step:
                step()
        self.compile_seconds = time.perf_counter() - start if compiled else None
        self.recorded = self.passes  # by autograd, which does not see the replay of a graph
        if settings.mode == "cudagraph":
            self.passes = Passes(*(_captured(one, settings.device) for one in self.passes))

    def _passes(self, run: nn.Module) -> Passes:
        """The passes of `run`, which is the block or its compiled form."""
        positional, keywords = arguments(self.block, self.inputs)

        def forward() -> Any:
            with self.settings.precision():
                return run(*positional, **keywords)

        def training() -> tuple[Any, tuple[Tensor | None, ...]]:
            output = forward()
            if not self.grads:
                self.grads += [torch.randn_like(t) for t in tensors(output) if t.requires_grad]
            return output, derived(output, list(self.wanted.values()), self.grads)

        return Passes(Pass(self.block, False, forward), Pass(self.block, True, training))


def _compiled(entry: Entry, block: nn.Module) -> nn.Module:
    torch.compiler.reset()  # many rows would reach the limit of recompilations
    options: dict[str, Any] = {"force_disable_caches": True}  # or compile_seconds depends on them
    whole = WHOLE_GRAPH not in entry.limits
    return torch.compile(block, dynamic=False, fullgraph=whole, options=options)  # type: ignore[return-value]


def _captured(one: Pass, device: str) -> Pass:
    with one.ready() as step:
        return replace(one, step=cuda.captured(step, device))
