"""Values held to a constructor's annotations: what a legal value of each kind is, in words."""

import types
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from .check import choice, shown

_LARGEST = torch.finfo(torch.float32).max


def fit_all(name: str, cls: type[nn.Module], values: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor values, each held to its annotation; JSON lists become tuples."""
    hints = get_type_hints(cls.__init__)
    return {
        key: fit(f"{name}: {key}", value, hints[key]) if key in hints else value
        for key, value in values.items()
    }


def fit(name: str, value: Any, hint: Any) -> Any:
    """`value` as the annotation has it, or a `TypeError` / `ValueError` in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
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
                f"{name}={shown(value)} must be finite, of at most {_LARGEST:.2g} as float32 is"
            )
        return float(value)
    return value


def words(hint: Any) -> str:
    """The annotation as a message has it: "int or None", "'auto'", "tuple of int"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(words, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        each = arguments[:1] if arguments[1:] == (Ellipsis,) else arguments
        return f"a list or tuple ({', '.join(map(words, each))}{', ...' * (len(each) == 1)})"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _is_kind(value: Any, hint: Any) -> bool:
    """Whether the value is of the annotation's kind, whatever the rules for values are."""
    origin = get_origin(hint) or hint
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
