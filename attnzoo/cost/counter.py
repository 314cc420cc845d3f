"""Exact costs of a call: multiply-adds, bytes that must move, bytes saved for the backward pass."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _torch
from ..validation.tensors import tensors
from . import operators
from .operators import Work


class Traffic(NamedTuple):
    """The fewest bytes that an implementation can read and write."""

    forward: int  # input + output + parameters
    training: int  # plus the gradients of all that can have one


class WorkCounter(_torch.TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts the cost of every operator called within it.

    Args:
        strict: whether an operator without a formula raises `UncountedOperatorError`. If False,
            only multiply-adds are counted, and `uncounted` collects the names of such operators.
    """

    supports_higher_order_operators = True  # they are dispatched here, too

    def __init__(self, *, strict: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.strict = strict
        self.work = Work()
        self.calls = 0  # of operators that compute something: views do not
        self.uncounted: set[str] = set()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = operators.formula(operator)
        if formula is None:
            with self:  # in inference mode composite operators are not decomposed yet
                out = _torch.decompose(operator, args, kwargs)
            if out is not NotImplemented:
                return out
            if self.strict:
                raise operators.uncounted(operator)
            self.uncounted.add(operators.name_of(operator))
        out = operator(*args, **kwargs)
        self.calls += not getattr(operator, "is_view", False)
        if formula is not None and (self.strict or formula.products):
            written = _torch.out_arguments(operator)
            given = {key: value for key, value in kwargs.items() if key not in written}
            macs, elementwise = formula.work(*args, **given, out=out)
            self.work = Work(self.work.macs + macs, self.work.elementwise + elementwise)
        return out


def count(function: Callable[[], Any], *, strict: bool = True) -> Work:
    """Count every operator that a call runs, including those of hand-written passes.

    Args:
        function: called once, without arguments.
        strict: see `WorkCounter`.

    Raises:
        UncountedOperatorError: `strict` is True and an operator has no cost formula.
    """
    counter = WorkCounter(strict=strict)
    with mha_in_parts(), counter:
        function()
    return counter.work


def traffic(parameters: Iterable[Tensor], inputs: Any, outputs: Any) -> Traffic:
    """Bytes of parameters, inputs and outputs, without and with their gradients.

    Integer and boolean tensors, such as dates and masks, and frozen parameters have no gradient.
    """
    weights, moved = list(parameters), list(tensors(inputs, outputs))
    forward = sum(map(_bytes, weights + moved))
    learned = [p for p in weights if p.requires_grad]
    smooth = [t for t in moved if t.is_floating_point() or t.is_complex()]
    return Traffic(forward=forward, training=forward + sum(map(_bytes, learned + smooth)))


def saved_bytes(function: Callable[[], Any], outside: Iterable[Tensor] = ()) -> int:
    """Bytes of distinct storages that autograd keeps between a call and its backward pass.

    Neither the tensors of `outside` nor the results of the call are counted, whether saved or not:
    parameters, buffers and inputs exist anyway, and the output of one layer is the input of the
    next.
    """
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    for tensor in (*outside, *tensors(output)):
        saved.pop(_storage(tensor), None)
    return sum(saved.values())


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module in eval mode; on exit, restore the mode of each of its submodules."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextlib.contextmanager
def mha_in_parts() -> Iterator[None]:
    """Disable the fast path of `nn.MultiheadAttention`, a single operator without a formula."""
    mha = torch.backends.mha
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
