"""Functions with a hand-written backward beside their plain form, and the one place that picks.

The plain form is the specification. It serves every mode that looks inside a function: tracing,
compilation, export, `torch.func` transforms, forward-mode derivatives and second derivatives.
The hand-written pair serves ordinary eager calls, where it saves passes over memory.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .precision import autocasting

_Outputs = Tensor | tuple[Tensor, ...]
_local = threading.local()


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Within it, this thread computes every plain form: for counters, exporters and tests."""
    before = getattr(_local, "plain", False)
    _local.plain = True
    try:
        yield
    finally:
        _local.plain = before


class ByHand:
    """A function of tensors and constants with a forward and a backward of its own.

    Args:
        plain: `plain(*args) -> outputs`, ordinary torch; what the pair must equal.
        forward: `forward(*args) -> (outputs, saved)`, run without a graph; `saved` is a tuple of
            tensors for the backward pass (the arguments are kept anyway).
        backward: `backward(needs, args, saved, *grads) -> gradients`, one for each argument, None
            where `needs` is False or the argument is no tensor.
        least: calls whose first argument has fewer numbers take the plain form, where the pair
            was measured to cost more than it saves.
    """

    def __init__(
        self,
        plain: Callable[..., _Outputs],
        forward: Callable[..., tuple[_Outputs, tuple[Tensor, ...]]],
        backward: Callable[..., tuple[Tensor | None, ...]],
        least: int = 0,
    ) -> None:
        self.plain, self.forward, self.backward = plain, forward, backward
        self.least = least

    def __call__(self, *args: Any) -> Any:
        if looked_into(*args) or args[0].numel() < self.least:
            return self.plain(*args)
        if torch.is_grad_enabled() and any(a.requires_grad for a in args if isinstance(a, Tensor)):
            return _Pair.apply(self, *args)
        return self.forward(*args)[0]


def recording() -> bool:
    """Whether `make_fx` is writing down the operations of this call."""
    if torch.compiler.is_compiling():  # which cannot look at the modes
        return False
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def looked_into(*args: Any) -> bool:
    """Whether a call with these arguments must be ordinary torch operations, seen one by one."""
    if (
        torch.compiler.is_compiling()
        or recording()
        or getattr(_local, "plain", False)
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return True
    tensors = [a for a in args if isinstance(a, Tensor)]
    floating = [t for t in tensors if t.is_floating_point()]
    return (
        any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors)
        or any(t.dtype != floating[0].dtype for t in floating)
        or any(t.is_meta or autocasting(t) for t in floating[:1])
    )


def _batched(grad: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(grad) or functorch.is_functorch_wrapped_tensor(grad)


def _own(output: Tensor, args: list[Tensor]) -> Tensor:
    """The output as no view: a residual network adds to it in place, which views refuse."""
    if not output._is_view() or any(output is arg for arg in args):
        return output
    place = (output.storage_offset(), output.size(), output.stride())
    return output.new_empty(0).set_(output.untyped_storage(), *place)


class _Pair(torch.autograd.Function):
    """Ties a `ByHand` pair into the graph.

    Second derivatives and batches of gradients (`is_grads_batched`) go through the plain form.
    """

    @staticmethod
    def forward(ctx: Any, pair: ByHand, *args: Any) -> Any:
        outputs, saved = pair.forward(*args)
        tensors = [a for a in args if isinstance(a, Tensor)]
        ctx.pair, ctx.split = pair, len(tensors)
        ctx.constants = [None if isinstance(a, Tensor) else a for a in args]
        ctx.where = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        ctx.save_for_backward(*tensors, *saved)
        if isinstance(outputs, tuple):
            return tuple(_own(output, tensors) for output in outputs)
        return _own(outputs, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        kept = ctx.saved_tensors  # read once: a checkpoint recomputes them for one reading
        tensors, saved = kept[: ctx.split], kept[ctx.split :]
        args = list(ctx.constants)
        for i, tensor in zip(ctx.where, tensors, strict=True):
            args[i] = tensor
        needs = ctx.needs_input_grad[1:]
        again = torch.is_grad_enabled()
        batched = any(_batched(g) for g in grads)
        if not (again or batched):
            return None, *ctx.pair.backward(needs, tuple(args), saved, *grads)
        with torch.enable_grad():
            # Views, since one argument may be computed from another: a gradient stops at each.
            args = [a.view_as(a) if isinstance(a, Tensor) else a for a in args]
            outputs = ctx.pair.plain(*args)
            wanted = [a for a, need in zip(args, needs, strict=True) if need]
            found = iter(
                torch.autograd.grad(outputs, wanted, grads, create_graph=again, allow_unused=True)
            )
        return None, *(next(found) if need else None for need in needs)
