"""The cost of each operator that the dispatcher calls, by a formula.

An operator's cost is looked up in this order:

- formulas given to `register`, for custom operators (`torch.library`);
- matrix products and convolutions, in multiply-adds: torch's formulas (`torch.utils.flop_counter`,
  including those added by its `register_flop_formula`), and our own for products that it omits;
- views, copies, casts, gathers and constants, which are free: they move bytes and compute nothing;
- pointwise operators, by `torch.Tag.pointwise`: one operation per element of the result, however
  expensive the function; reductions: one per element of the input;
- operators that do several of these at once: operations per element, from `operator_table`.

An operator without a formula raises an error where counts must be complete.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import flop_registry

from .. import _torch
from .operator_table import ELEMENTWISE, FREE, PRODUCTS, UNTAGGED, largest


class Work(NamedTuple):
    """Multiply-adds; elementwise and reduction operations."""

    macs: int = 0
    elementwise: int = 0


class UncountedOperatorError(RuntimeError):
    """An operator has no cost formula."""


CountWork = Callable[..., Work]  # takes the operator's arguments, and its result as `out=`


class Formula(NamedTuple):
    """What a call of one operator costs."""

    work: CountWork
    products: bool  # whether the cost may include multiply-adds


_registered: dict[str, CountWork] = {}


def register(name: str) -> Callable[[CountWork], CountWork]:
    """Register the cost of an operator without a formula, usually a custom one:

        @register("mylib::scan")
        def scan(x, decay, *, out):  # the operator's arguments, and its result
            return Work(macs=out.numel(), elementwise=3 * out.numel())

    Args:
        name: the operator's `torch.library` name, for all of its overloads.

    Raises:
        ValueError: the name has no namespace, or the operator has a formula already.
    """
    space, _, operator = name.partition("::")
    if not operator:
        raise ValueError(f"name={name!r} must be 'namespace::operator', such as 'mylib::scan'")
    packet = getattr(getattr(torch.ops, space), operator, None)
    if packet is not None and any(formula(getattr(packet, o)) for o in packet.overloads()):
        raise ValueError(f"name={name!r} must be an operator without a cost formula; it has one")

    def add(count: CountWork) -> CountWork:
        _registered[name] = count
        return count

    return add


def formula(operator: Any) -> Formula | None:
    """The cost formula of an operator, or None if it has none."""
    name = name_of(operator)
    space, _, base = name.partition("::")
    packet = _torch.overload_packet(operator)
    if base and not base.startswith("_"):  # in-place forms have the formula of the other form
        packet = getattr(getattr(torch.ops, space, None), base, packet)
    if packet not in flop_registry and base.endswith("_for_cpu"):  # torch 2.6 lacks attention's
        packet = getattr(getattr(torch.ops, space), base.removesuffix("_for_cpu"), packet)
    if name in _registered:
        return Formula(_registered[name], products=True)
    if packet in flop_registry:
        return Formula(_by_torch(flop_registry[packet], attention="attention" in name), True)
    if base in PRODUCTS and space in _TORCH_NAMESPACES:
        return Formula(lambda *args, out, **kw: Work(macs=PRODUCTS[base](*args, **kw)), True)
    elementwise = _elementwise(operator, space, base) if space in _TORCH_NAMESPACES else None
    if elementwise is None:
        return None
    return Formula(lambda *args, out, **kw: Work(elementwise=elementwise(out, *args, **kw)), False)


def _elementwise(operator: Any, space: str, base: str) -> Callable[..., int] | None:
    """Operations of one of torch's operators without products."""
    if operator.is_view or torch.Tag.inplace_view in operator.tags or base in FREE:
        return lambda out, *args, **kwargs: 0
    if base in ELEMENTWISE:
        return ELEMENTWISE[base]
    return largest if base in UNTAGGED or _tagged(operator, space, base) else None


def uncounted(operator: Any) -> UncountedOperatorError:
    """The error for an operator without a formula."""
    return UncountedOperatorError(
        f"operator {operator} has no cost formula; add one with "
        f"attnzoo.cost.operators.register({name_of(operator)!r})"
    )


def name_of(operator: Any) -> str:
    """`aten::relu` for `aten.relu.default`, `aten.relu_.default` and `aten.relu.out`."""
    name = _torch.schema_name(operator)
    return name.removesuffix("_") if name.startswith("aten::") else name


def _by_torch(flops: Callable[..., int], *, attention: bool) -> CountWork:
    """Torch's formula; a fused attention operator also scales its scores and takes a softmax."""

    def count(*args: Any, out: Any, **kwargs: Any) -> Work:
        macs = flops(*args, **kwargs, out_val=out) // 2
        if not attention:
            return Work(macs)
        return Work(macs, 6 * macs // (args[0].shape[-1] + args[2].shape[-1]))

    return count


def _tagged(operator: Any, space: str, base: str) -> bool:
    """Whether torch tags the operator, or another overload of it, as pointwise."""
    packet = getattr(getattr(torch.ops, space), base, None)
    forms = [] if packet is None else [getattr(packet, form) for form in packet.overloads()]
    return any(torch.Tag.pointwise in form.tags for form in (operator, *forms))


_TORCH_NAMESPACES = ("aten", "prims")
