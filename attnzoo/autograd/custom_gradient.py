"""Functions with a hand-written gradient beside their reference form, and which of the two runs.

The reference form serves every mode that reads a function operation by operation: tracing,
compilation, export, `torch.func` transforms, forward-mode derivatives and second derivatives.
The hand-written pair serves ordinary eager calls, where it saves passes over memory.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from .. import _torch
from ..ops.precision import autocast_disabled

_Outputs = Tensor | tuple[Tensor, ...]
_P = ParamSpec("_P")
_R = TypeVar("_R")
_local = threading.local()


class Pair(NamedTuple):
    """A hand-written forward pass and its backward pass.

    Args:
        forward: `forward(*args) -> (outputs, saved)`, run without a graph; `saved` is a tuple of
            tensors for the backward pass (the arguments are kept anyway).
        backward: `backward(needs, args, saved, *grads) -> gradients`, one for each argument, None
            where `needs` is False or the argument is no tensor.
        min_numel: calls whose first argument has fewer numbers take the reference form, which
            was measured to be faster there.
        half: whether it computes half precision, too; else the reference form does.
        differentiable: whether `backward` is made of ordinary operations and `custom_gradient`
            functions of its arguments and gradients alone, so that second derivatives run it too.
    """

    forward: Callable[..., tuple[Any, tuple[Tensor, ...]]]
    backward: Callable[..., tuple[Tensor | None, ...]]
    min_numel: int = 0
    half: bool = True
    differentiable: bool = False


def custom_gradient(reference: Callable[_P, _R], pair: Pair) -> Callable[_P, _R]:
    """`reference`, an ordinary torch function of positional arguments, computed by `pair`.

    The two must agree in outputs and every gradient; `needs_reference_form` decides which runs.
    They are attributes, `reference` and `pair`, of what is returned.
    """

    @functools.wraps(reference)
    def function(*args: Any) -> Any:
        if (
            needs_reference_form(*args)
            or args[0].numel() < pair.min_numel
            or (args[0].dtype.itemsize < 4 and not pair.half)
        ):
            return reference(*args)  # type: ignore[call-arg]
        if torch.is_grad_enabled() and any(a.requires_grad for a in args if isinstance(a, Tensor)):
            return _Function.apply(reference, pair, *args)
        return pair.forward(*args)[0]

    function.reference, function.pair = reference, pair  # type: ignore[attr-defined]
    return cast(Callable[_P, _R], function)


@contextlib.contextmanager
def reference_forms() -> Iterator[None]:
    """Within it, this thread computes every reference form: for exporters and tests."""
    before = getattr(_local, "reference", False)
    _local.reference = True
    try:
        yield
    finally:
        _local.reference = before


def needs_reference_form(*args: Any) -> bool:
    """Whether a call with these arguments must be ordinary torch operations, read one by one."""
    if (
        torch.compiler.is_compiling()
        or _torch.proxy_tracing()
        or getattr(_local, "reference", False)
        or _torch.jit_tracing()
        or _torch.transforms_active()
        or _torch.forward_mode_active()
    ):
        return True
    tensors = [a for a in args if isinstance(a, Tensor)]
    floating = [t for t in tensors if t.is_floating_point()]
    return (
        any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors)
        or any(t.dtype != floating[0].dtype for t in floating)
        or any(t.is_meta or _torch.autocast_enabled(t.device.type) for t in floating[:1])
    )


def _as_own_tensor(output: Tensor, args: list[Tensor]) -> Tensor:
    """The output as no view: a residual network adds to it in place, which views refuse."""
    if not _torch.is_view(output) or any(output is arg for arg in args):
        return output
    place = (output.storage_offset(), output.size(), output.stride())
    return output.new_empty(0).set_(output.untyped_storage(), *place)


class _Function(torch.autograd.Function):
    """Puts a pair into the autograd graph.

    Second derivatives, where the pair's backward pass has none, and batches of gradients
    (`is_grads_batched`) go through the reference form.
    """

    @staticmethod
    def forward(ctx: Any, reference: Callable[..., _Outputs], pair: Pair, *args: Any) -> Any:
        outputs, saved = pair.forward(*args)
        tensors = [a for a in args if isinstance(a, Tensor)]
        ctx.reference, ctx.pair, ctx.split = reference, pair, len(tensors)
        ctx.constants = [None if isinstance(a, Tensor) else a for a in args]
        ctx.where = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        ctx.save_for_backward(*tensors, *saved)
        if isinstance(outputs, tuple):
            return tuple(_as_own_tensor(output, tensors) for output in outputs)
        return _as_own_tensor(outputs, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        kept = ctx.saved_tensors  # read once: a checkpoint recomputes them for one reading
        tensors, saved = kept[: ctx.split], kept[ctx.split :]
        args = list(ctx.constants)
        for i, tensor in zip(ctx.where, tensors, strict=True):
            args[i] = tensor
        needs = ctx.needs_input_grad[2:]
        again = torch.is_grad_enabled()
        apart = again and not ctx.pair.differentiable
        if not (apart or any(_torch.is_batched(g) for g in grads)):
            with autocast_disabled(grads[0]):  # as it was in the forward pass
                return None, None, *ctx.pair.backward(needs, tuple(args), saved, *grads)
        with torch.enable_grad(), autocast_disabled(grads[0]):
            # Views, since one argument may be computed from another: a gradient stops at each.
            args = [a.view_as(a) if isinstance(a, Tensor) else a for a in args]
            outputs = ctx.reference(*args)
            wanted = [a for a, need in zip(args, needs, strict=True) if need]
            found = iter(
                torch.autograd.grad(outputs, wanted, grads, create_graph=again, allow_unused=True)
            )
        return None, None, *(next(found) if need else None for need in needs)
