"""Records that check themselves: each field's value against its own annotation."""

import dataclasses
import functools
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a str"}


class Checked:
    """Base of a dataclass whose values are checked against its annotations when it is made."""

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, kind in annotations(cls).items():
            if not matches(value := getattr(self, name), kind):
                raise TypeError(f"{name}={value!r} must be {words(kind)}")


@functools.cache
def annotations(cls: Any) -> dict[str, Any]:
    """The dataclass's fields and what each may be."""
    hints = get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def matches(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's kind; a bool is no number, an int is a float too."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(matches(value, each) for each in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(args) and all(map(matches, value, args))
        )
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return kind is Any or isinstance(value, origin or kind)


def words(kind: Any) -> str:
    """An annotation for a reader: `a whole number, a pair of whole numbers or None`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        each = [words(arg) for arg in args]
        return f"{', '.join(each[:-1])} or {each[-1]}"
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin is tuple:
        return f"a tuple of {len(args)}, each {words(args[0])}"
    if kind is type(None):
        return "None"
    return _WORDS.get(kind, f"a {getattr(origin or kind, '__name__', kind)}")
