"""Exact costs: parameters, multiply-adds, bytes that must move, bytes kept for backward."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from ..autograd import reference_forms
from ..registry import Cost, Inputs
from ..testing.inputs import call, evaluating, first, tensors
from . import operators
from .operators import Work


class Traffic(NamedTuple):
    """Bytes that any implementation must read or write at least."""

    forward: int  # input + output + parameters
    training: int  # plus the gradients, of what can have one


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums up what every operator costs that is called within it."""

    supports_higher_order_operators = True  # so that they come here, to be counted or refused

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Work()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = operators.formula(operator)
        if formula is None:
            with self:  # under inference mode composite operators come whole
                out = _parts(operator, args, kwargs)
            if out is NotImplemented:
                raise operators.uncounted(operator)
            return out
        out = operator(*args, **kwargs)
        macs, elementwise = formula(*args, **kwargs, out=out)
        self.work = Work(self.work.macs + macs, self.work.elementwise + elementwise)
        return out


def _parts(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operator's result by the operators it is made of, or NotImplemented."""
    if not isinstance(operator, torch._ops.OpOverload):
        return NotImplemented
    return operator.decompose(*args, **kwargs)


def work(block: nn.Module, inputs: Inputs) -> Work:
    """What one sample's forward pass computes, in eval mode and by the block's plain form.

    The first sample of the inputs is run, so that work that is done once a call counts in full;
    their first axis is the batch. Attention is taken apart into its products and its softmax.

    Raises:
        UncountedOperatorError: an operator is called that nobody counts.
    """
    counter, forms = _Counter(), sdpa_kernel(SDPBackend.MATH)
    with evaluating(block), torch.no_grad(), reference_forms(), forms, mha_in_parts(), counter:
        call(block, first(inputs))
    return counter.work


def macs_executed(block: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds that one sample's forward pass runs here: convolutions, products, attention."""
    return work(block, inputs).macs


def macs(block: nn.Module, inputs: Inputs, form: Cost | None = None) -> int:
    """Multiply-adds of one sample's forward pass by the authors' published arithmetic.

    That is the closed form (`Entry.closed_form`); without one, what runs here.
    """
    return macs_executed(block, inputs) if form is None else form.macs


def elementwise(block: nn.Module, inputs: Inputs) -> int:
    """Elementwise and reduction operations of one sample's forward pass; see `operators`."""
    return work(block, inputs).elementwise


def traffic(block: nn.Module, inputs: Inputs, output: Any) -> Traffic:
    """Input, output and parameter bytes; and with the gradients of what can have one.

    Numbers that are not floating, such as dates and masks, and frozen parameters have none.
    """
    parameters, moved = list(block.parameters()), list(tensors(inputs, output))
    forward = sum(map(_bytes, parameters + moved))
    learned = [p for p in parameters if p.requires_grad]
    smooth = [t for t in moved if t.is_floating_point() or t.is_complex()]
    return Traffic(forward=forward, training=forward + sum(map(_bytes, learned + smooth)))


def saved_bytes(block: nn.Module, inputs: Inputs) -> int:
    """Bytes of distinct storages that autograd keeps between forward and backward.

    Parameters and inputs are not counted: they exist anyway.
    """
    held = {_storage(t) for t in (*block.parameters(), *block.buffers(), *tensors(inputs))}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in held:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call(block, inputs)
    del output
    return sum(kept.values())


@contextlib.contextmanager
def mha_in_parts() -> Iterator[None]:
    """Within it `nn.MultiheadAttention` calls its products, not one operator for all of itself."""
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
