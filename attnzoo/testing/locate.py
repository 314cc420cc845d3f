"""Finds the submodule at which something goes wrong in a network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Inputs
from .inputs import call, tensors

Trace = list[tuple[str, list[Tensor]]]  # a submodule's path and outputs, in the order they end


def traced(module: nn.Module, inputs: Inputs) -> Trace:
    """The outputs of every submodule in a call; those of the module itself come last."""
    found: Trace = []
    handles: list[Any] = []

    def hook_of(path: str) -> Callable[..., None]:
        def hook(part: nn.Module, args: Any, output: Any) -> None:
            found.append((path, [t.detach().clone() for t in tensors(output)]))

        return hook

    try:
        for path, part in module.named_modules():
            handles.append(part.register_forward_hook(hook_of(path)))
        with torch.no_grad():
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def first_not_finite(module: nn.Module, inputs: Inputs) -> str:
    """The submodule whose outputs are the first that are not finite; "" for the module itself."""
    for path, outputs in traced(module, inputs):
        if not all(bool(t.isfinite().all()) for t in outputs if t.is_floating_point()):
            return path
    return ""


def first_that_differs(module: nn.Module, inputs: Inputs, others: Inputs) -> str:
    """The submodule whose first sample is the first to differ between two batches."""
    pairs = zip(traced(module, inputs), traced(module, others), strict=False)
    for (path, ours), (_, theirs) in pairs:
        for a, b in zip(ours, theirs, strict=False):
            if a.ndim and a.shape[1:] == b.shape[1:] and not torch.allclose(a[0], b[0]):
                return path
    return ""
