"""Functions with a reference form and a hand-written gradient, and the choice between the two.

The reference form runs wherever torch records or transforms single operations: in tracing,
compilation, export, `torch.func` transforms, forward-mode derivatives and second derivatives.
The hand-written pair runs in ordinary eager calls, where it needs fewer passes over memory.
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


class _Local(threading.local):
    reference = False  # whether this thread runs every reference form


_local = _Local()
_ORDINARY = (Tensor, torch.nn.Parameter)


class Pair(NamedTuple):
    """A hand-written forward pass and its backward pass.

    Args:
        forward: `forward(*args) -> (outputs, saved)`, called without gradient tracking; `saved` is
            a tuple of tensors for the backward pass, in addition to the arguments.
        backward: `backward(needs, args, saved, *grads) -> gradients`, one for each argument, None
            where `needs` is False or the argument is not a tensor.
        min_numel: calls whose first argument has fewer elements use the reference form, which
            measured faster there.
        half: whether the pair also runs in half precision; if not, the reference form does.
        differentiable: whether autograd can differentiate `backward` for second derivatives: it
            then calls only ordinary operations and `custom_gradient` functions, and uses only the
            arguments and the gradients, not `saved`.
    """

    forward: Callable[..., tuple[Any, tuple[Tensor, ...]]]
    backward: Callable[..., tuple[Tensor | None, ...]]
    min_numel: int = 0
    half: bool = True
    differentiable: bool = False


def custom_gradient(reference: Callable[_P, _R], pair: Pair) -> Callable[_P, _R]:
    """A function that computes `reference`, by `pair` where that is possible.

    The two must agree in outputs and every gradient; `needs_reference_form` decides which one runs.

    Args:
        reference: ordinary torch operations on positional arguments.
        pair: the hand-written passes.

    Returns:
        The function, with `reference` and `pair` as attributes.
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
    """A context in which this thread runs every reference form, for exporters and tests."""
    before = _local.reference
    _local.reference = True
    try:
        yield
    finally:
        _local.reference = before


def needs_reference_form(*args: Any) -> bool:
    """Whether a call with these arguments must run as ordinary torch operations."""
    if (
        torch.compiler.is_compiling()
        or _torch.proxy_tracing()
        or _local.reference
        or _torch.jit_tracing()
        or _torch.transforms_active()
        or _torch.forward_mode_active()
    ):
        return True
    first = None  # of the floating tensors
    for tensor in args:
        if type(tensor) not in _ORDINARY:
            if isinstance(tensor, Tensor):
                return True
        elif tensor.is_floating_point():
            first = tensor if first is None else first
            if tensor.dtype is not first.dtype:
                return True
    if first is None or first.is_meta:
        return first is not None
    return _torch.autocast_possible() and _torch.autocast_enabled(first.device.type)


def _as_own_tensor(output: Tensor, args: list[Tensor]) -> Tensor:
    """The output, but not as a view: residual networks add to it in place, which views forbid."""
    if not _torch.is_view(output) or any(output is arg for arg in args):
        return output
    place = (output.storage_offset(), output.size(), output.stride())
    return output.new_empty(0).set_(output.untyped_storage(), *place)


class _Function(torch.autograd.Function):
    """The node of a pair in the autograd graph.

    Second derivatives, unless the pair is `differentiable`, and batches of gradients
    (`is_grads_batched`) are computed by the reference form.
    """

    @staticmethod
    def forward(ctx: Any, reference: Callable[..., _Outputs], pair: Pair, *args: Any) -> Any:
        outputs, saved = pair.forward(*args)
        tensors = [a for a in args if isinstance(a, Tensor)]
        ctx.reference, ctx.pair, ctx.tensor_count = reference, pair, len(tensors)
        ctx.constants = [None if isinstance(a, Tensor) else a for a in args]
        ctx.tensor_positions = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        ctx.save_for_backward(*tensors, *saved)
        if isinstance(outputs, tuple):
            return tuple(_as_own_tensor(output, tensors) for output in outputs)
        return _as_own_tensor(outputs, tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        # Read once, since activation checkpointing recomputes them for one access only.
        all_saved = ctx.saved_tensors
        tensors, saved = all_saved[: ctx.tensor_count], all_saved[ctx.tensor_count :]
        args = list(ctx.constants)
        for i, tensor in zip(ctx.tensor_positions, tensors, strict=True):
            args[i] = tensor
        needs = ctx.needs_input_grad[2:]
        create_graph = torch.is_grad_enabled()
        by_reference = create_graph and not ctx.pair.differentiable
        if not (by_reference or any(_torch.is_batched(g) for g in grads)):
            with autocast_disabled(grads[0]):  # as it was in the forward pass
                return None, None, *ctx.pair.backward(needs, tuple(args), saved, *grads)
        with torch.enable_grad(), autocast_disabled(grads[0]):
            # Views, since one argument may be computed from another; each gradient ends at its own.
            args = [a.view_as(a) if isinstance(a, Tensor) else a for a in args]
            outputs = ctx.reference(*args)
            wanted = [a for a, need in zip(args, needs, strict=True) if need]
            gradients = iter(
                torch.autograd.grad(
                    outputs, wanted, grads, create_graph=create_graph, allow_unused=True
                )
            )
        return None, None, *(next(gradients) if need else None for need in needs)
