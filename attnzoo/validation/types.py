"""Ranges of single arguments as annotations, and the check of a value against its annotation.

    def __init__(self, c: Width, *, kernel_size: Odd = 7, dropout: Rate = 0.0) -> None: ...

The registry enforces them on every call of a constructor; `attnzoo show` prints them.
"""

import math
import types
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from .check import choice
from .messages import shown

_LARGEST = torch.finfo(torch.float32).max


class AtLeast(NamedTuple):
    """A number not below `low`."""

    low: float

    def __str__(self) -> str:
        return f"at least {self.low}"

    def allows(self, value: Any) -> bool:
        return bool(value >= self.low)


class AtMost(NamedTuple):
    """A number not above `high`."""

    high: float

    def __str__(self) -> str:
        return f"at most {self.high}"

    def allows(self, value: Any) -> bool:
        return bool(value <= self.high)


class Above(NamedTuple):
    """A number above `low`."""

    low: float

    def __str__(self) -> str:
        return f"above {self.low}"

    def allows(self, value: Any) -> bool:
        return bool(value > self.low)


class Below(NamedTuple):
    """A number below `high`."""

    high: float

    def __str__(self) -> str:
        return f"below {self.high}"

    def allows(self, value: Any) -> bool:
        return bool(value < self.high)


class OddNumber(NamedTuple):
    """An odd number, such as the size of a kernel that is centered on its pixel."""

    def __str__(self) -> str:
        return "odd"

    def allows(self, value: Any) -> bool:
        return bool(value % 2)

    def nearest(self, value: Any) -> tuple[int, int]:
        return value - 1, value + 1


class PerfectSquare(NamedTuple):
    """The square of an int, such as the number of cells of a square grid."""

    def __str__(self) -> str:
        return "a perfect square"

    def allows(self, value: Any) -> bool:
        return bool(math.isqrt(value) ** 2 == value)

    def nearest(self, value: Any) -> tuple[int, int]:
        side = math.isqrt(value)
        return side**2, (side + 1) ** 2


class NotEmpty(NamedTuple):
    """A tuple of at least one item."""

    def __str__(self) -> str:
        return "non-empty"

    def allows(self, value: Any) -> bool:
        return len(value) > 0


class Unbounded(NamedTuple):
    """An int that may be 2**31 or more, such as a number of bytes or operations."""

    def __str__(self) -> str:
        return "of any size"

    def allows(self, value: Any) -> bool:
        return True


_Rule = AtLeast | AtMost | Above | Below | OddNumber | PerfectSquare | NotEmpty | Unbounded

Width = Annotated[int, AtLeast(1)]  # channels
Count = Annotated[int, AtLeast(1)]  # heads, groups, taps, steps
Depth = Annotated[int, AtLeast(1), AtMost(1000)]  # numbers of layers, each a module of its own
NonNegative = Annotated[int, AtLeast(0)]
Odd = Annotated[int, AtLeast(1), OddNumber()]  # kernel sizes
Rate = Annotated[float, AtLeast(0), Below(1)]  # of dropout
Positive = Annotated[float, Above(0)]
Total = Annotated[int, AtLeast(0), Unbounded()]  # of bytes, multiply-adds, samples
Counts = Annotated[tuple[Count, ...], NotEmpty()]
Odds = Annotated[tuple[Odd, ...], NotEmpty()]


def fit_all(name: str, cls: type[nn.Module], values: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor values, each checked against its annotation; JSON lists become tuples."""
    hints = get_type_hints(cls.__init__, include_extras=True)
    return {
        key: fit(f"{name}: {key}", value, hints[key]) if key in hints else value
        for key, value in values.items()
    }


def fit(name: str, value: Any, hint: Any) -> Any:
    """`value` converted to the annotated type; raises a `TypeError` or `ValueError` otherwise."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        # not `in`: rules without fields are equal to each other, as tuples are
        unbounded = any(isinstance(a, Unbounded) for a in arguments) and _is_kind(value, int)
        plain = int(value) if unbounded else fit(name, value, arguments[0])
        return _fit_rules(name, plain, arguments[1:])
    if origin in (Union, types.UnionType):
        return _fit_union(name, value, arguments)
    if origin is Literal:
        choice(name, value, arguments)
        return value
    if not _is_kind(value, hint):
        raise TypeError(f"{name}={shown(value)} must be {words(hint)}, not {type(value).__name__}")
    if origin is tuple:
        return _fit_tuple(name, value, arguments)
    if hint is int:
        if not -(2**31) < value < 2**31:
            bound = "below 2**31" if value > 0 else "above -2**31"
            raise ValueError(f"{name}={shown(value)} must be {bound}")
        return int(value)
    if hint is float:
        if not abs(value) <= _LARGEST:
            raise ValueError(
                f"{name}={shown(value)} must be finite in float32, at most {_LARGEST:.2g}"
            )
        return float(value)
    return value


def words(hint: Any) -> str:
    """The annotation in words: "int or None", "'auto'", "a list or tuple (int, ...)"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return words(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join(map(words, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        each = arguments[:1] if arguments[1:] == (Ellipsis,) else arguments
        return f"a list or tuple ({', '.join(map(words, each))}{', ...' * (len(each) == 1)})"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def limits(hint: Any) -> str:
    """The range of an annotation in words, such as "at least 1, odd"; "" if it has none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is Annotated:
        inner, own = limits(arguments[0]), ", ".join(map(str, arguments[1:]))
        return "; ".join(text for text in (own, inner) if text)
    if origin in (Union, types.UnionType):
        found = [limits(a) or words(a) for a in arguments if a is not type(None)]
        some = any(limits(a) for a in arguments)
        return " or ".join([*found, *["None"] * (type(None) in arguments)]) if some else ""
    if origin is tuple and arguments and limits(arguments[0]):
        return f"each {limits(arguments[0])}"
    return ""


def _fit_rules(name: str, value: Any, rules: tuple[_Rule, ...]) -> Any:
    discrete = [rule for rule in rules if isinstance(rule, (OddNumber, PerfectSquare))]
    bounds = [rule for rule in rules if not isinstance(rule, (OddNumber, PerfectSquare))]
    if not all(rule.allows(value) for rule in bounds):
        raise ValueError(f"{name}={shown(value)} must be {' and '.join(map(str, bounds))}")
    for rule in discrete:
        if not rule.allows(value):
            near = ", ".join(map(str, rule.nearest(value)))
            raise ValueError(f"{name}={shown(value)} must be {rule}; the nearest are {near}")
    return value


def _is_kind(value: Any, hint: Any) -> bool:
    """Whether the value has the annotated type, ignoring rules such as ranges."""
    origin = get_origin(hint) or hint
    if origin is Annotated:
        return _is_kind(value, get_args(hint)[0])
    if origin is Literal:
        return any(type(value) is type(a) and value == a for a in get_args(hint))
    if origin is tuple:
        return isinstance(value, (list, tuple))
    if origin in (int, float):
        number = Integral if origin is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    return not isinstance(origin, type) or isinstance(value, origin)


def _fit_union(name: str, value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        if _is_kind(value, option):
            return fit(name, value, option)
    must = " or ".join(map(words, options))
    kind = ValueError if isinstance(value, str) and "'" in must else TypeError
    raise kind(f"{name}={shown(value)} must be {must}, not {type(value).__name__}")


def _fit_tuple(name: str, value: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ValueError(
            f"{name}={shown(value)} must have {len(arguments)} items, not {len(value)}"
        )
    return tuple(
        fit(f"{name}[{i}]", item, argument)
        for i, (item, argument) in enumerate(zip(value, arguments, strict=True))
    )
