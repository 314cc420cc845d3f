"""A network with its inputs: the steps that are timed, and the memory that they keep."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..bench.timing import cuda
from ..bench.timing.sample import Step
from ..cost import counter
from ..insertion.probe import arguments
from ..testing.gradcheck import derived
from ..validation.tensors import map_tensors, tensors
from .sampling import synchronized


class Network:
    """A network, ready to be timed.

    Args:
        model: called in eval mode for inference, in train mode for the training step.
        example: its inputs: a tensor, a tuple of arguments, or a dict of them by name.
        device: where both are moved.
        compiled: whether `torch.compile` compiles it.
    """

    def __init__(
        self, model: nn.Module, example: Any, device: torch.device, compiled: bool = False
    ) -> None:
        self.model, self.device = model.to(device), device
        args, kwargs = arguments(example)
        self.args, self.kwargs = map_tensors(lambda t: t.detach().to(device), (args, kwargs))
        self.run: Callable[..., Any] = torch.compile(model) if compiled else model
        self.learned: list[Tensor] = [p for p in model.parameters() if p.requires_grad]

    def inference(self) -> Step:
        """A forward pass; for `ready(train=False)`."""
        return synchronized(self._forward, self.device)

    def training(self) -> Step:
        """Forward and backward pass; for `ready(train=True)`."""
        grads = [torch.randn_like(t) for t in tensors(self._forward()) if t.requires_grad]

        def step() -> None:
            derived(self._forward(), self.learned, grads)

        return synchronized(step, self.device)

    @contextlib.contextmanager
    def ready(self, train: bool) -> Iterator[None]:
        """Train mode with autograd recording, or eval mode under `torch.inference_mode`."""
        self.model.train(train)
        devices = [self.device] if self.device.type != "cpu" else []
        kind = self.device.type if devices else "cuda"
        with torch.random.fork_rng(devices, device_type=kind), torch.inference_mode(not train):
            yield

    def saved_bytes(self) -> int:
        """What autograd keeps of a forward pass in train mode."""
        outside: list[Tensor] = [*self.model.parameters(), *self.model.buffers()]
        outside += tensors(self.args, self.kwargs)
        with self.ready(train=True):
            return counter.saved_bytes(self._forward, outside)

    def peak_bytes(self) -> int | None:
        """The most that a training step holds beyond its start; CUDA only."""
        if self.device.type != "cuda":
            return None
        with self.ready(train=True):
            return cuda.peak_bytes(self.training(), str(self.device))

    def _forward(self) -> Any:
        return self.run(*self.args, **self.kwargs)
