"""Constructor calls held to the signature: keywords, types, choices and size, refused in words.

The registry wraps the `__init__` of every class it is given, so that `attnzoo.build(name, ...)` and
the class called directly refuse the same things in the same words.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from . import annotation, check

LARGEST = 2**31  # parameters; no attention block is near it, and torch may die on allocating more
LARGEST_META = 2**59  # tensors without memory: what torch can still count the bytes of


def bind(
    name: str, cls: type[nn.Module], args: tuple[Any, ...], config: Mapping[str, Any]
) -> dict[str, Any]:
    """All arguments of `cls(*args, **config)` by name, defaults filled in, held to annotations."""
    signature = inspect.signature(cls)
    known = signature.parameters
    spare = next((p.name for p in known.values() if p.kind is p.VAR_KEYWORD), None)
    for key in config:
        if key not in known and spare is None:
            near = check.nearest(key, known)
            raise TypeError(
                f"{name} has no argument {check.shown(key)}{near}; "
                f"its signature is {usage(name, cls)}"
            )
    try:
        bound = signature.bind(*args, **config)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; its signature is {usage(name, cls)}") from None
    bound.apply_defaults()
    values = annotation.fit_all(name, cls, bound.arguments)
    return values | values.pop(spare) if spare else values


def usage(name: str, cls: type[nn.Module]) -> str:
    """The signature as a user writes it: `se(c, *, reduction=16, bias=False)`."""
    bare = [p.replace(annotation=p.empty) for p in inspect.signature(cls).parameters.values()]
    return f"{name}{inspect.Signature(bare)}"


def hold(name: str, cls: type[nn.Module], params: Callable[..., int]) -> None:
    """Hold every call of the class's constructor to its signature, and to a size.

    Args:
        name: what messages call the class.
        cls: the class, changed in place; one that is held already is left as it is.
        params: the number of parameters by formula, of the constructor's arguments.
    """
    init = cls.__init__
    if getattr(init, "held", None) is cls:
        return

    @functools.wraps(init)
    def __init__(self: nn.Module, /, *args: Any, **config: Any) -> None:
        values = bind(name, cls, args, config)
        _refuse_huge(name, params, values)
        init(self, **values)

    __init__.held = cls  # type: ignore[attr-defined]
    cls.__init__ = __init__  # type: ignore[method-assign, assignment]


def _refuse_huge(name: str, params: Callable[..., int], values: Mapping[str, Any]) -> None:
    try:
        count = params(**values)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return  # no formula holds for what the constructor is about to refuse, in words
    limit = LARGEST_META if torch.empty(0).is_meta else LARGEST
    if count >= limit:
        shown = ", ".join(f"{key}={check.shown(value)}" for key, value in values.items())
        raise ValueError(
            f"{name}({shown}) would have {count:,} parameters; a block has fewer than {limit:,}: "
            "take smaller sizes"
        )
