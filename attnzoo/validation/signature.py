"""Checks constructor calls against the signature: keywords, types, ranges and total size.

The registry wraps the `__init__` of every registered class, so that `attnzoo.build(name, ...)` and
a direct call of the class raise the same errors.
"""

import contextlib
import functools
import inspect
import math
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, get_type_hints

import torch
from torch import nn

from .. import _torch
from . import messages, types

MAX_PARAMETERS = 2**31  # far above any attention block; allocating more may crash torch
MAX_META_PARAMETERS = 2**59  # on the meta device; torch cannot represent the bytes of more
_MAYBE_LARGE = 2**22  # product of all arguments from which the block is first built on meta


def bind(
    name: str, cls: type[nn.Module], args: tuple[Any, ...], config: Mapping[str, Any]
) -> dict[str, Any]:
    """All arguments of `cls(*args, **config)` by name, defaults filled in, values checked."""
    signature = inspect.signature(cls)
    known = signature.parameters
    extra = next((p.name for p in known.values() if p.kind is p.VAR_KEYWORD), None)
    for key in config:
        if key not in known and extra is None:
            near = _meant(key, known) or messages.nearest(key, known)
            raise TypeError(
                f"{name} has no argument {messages.shown(key)}{near}; "
                f"its signature is {usage(name, cls)}"
            )
    try:
        bound = signature.bind(*args, **config)
    except TypeError as error:
        hint = _by_keyword(known, args)
        raise TypeError(f"{name}: {error}{hint}; its signature is {usage(name, cls)}") from None
    bound.apply_defaults()
    rest = bound.arguments.pop(extra) if extra else {}
    return types.fit_all(name, cls, bound.arguments) | rest


# What other libraries call the arguments that are called so here.
_ALIASES = {
    "c": "dim in_channels in_channel in_planes inplanes inp in_dim in_features gate_channels "
    "channels channel num_channels embed_dim embed_dims d_model hidden_size hidden_dim input_dim "
    "planes features num_features c1 ch in_ch ch_in nc chs",
    "c_out": "out_channels out_channel out_planes outp oup out_dim out_features c2 d_out",
    "reduction": "reduction_ratio rd_ratio ratio r se_ratio squeeze_factor squeeze_ratio factor",
    "kernel_size": "k ks kernel ksize k_size",
    "heads": "num_heads n_heads nhead n_head h head num_attention_heads",
    "dropout": "drop drop_rate attn_drop proj_drop p dropout_p",
}


def _meant(key: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for a keyword of other libraries."""
    for ours, theirs in _ALIASES.items():
        if ours in known and key.lower() in theirs.split():
            return f"; did you mean {ours!r}?"
    return ""


def _by_keyword(known: Mapping[str, inspect.Parameter], args: tuple[Any, ...]) -> str:
    """What to write where a second argument was passed by position."""
    positional = [p for p in known.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if len(args) != len(positional) + 1 or isinstance(args[-1], (dict, list)):
        return ""
    keys = [key for key in ("c_out", "reduction", "heads") if key in known]
    return f"; write {keys[0]}={messages.shown(args[-1])}" if keys else ""


def usage(name: str, cls: type[nn.Module]) -> str:
    """The signature as a user writes it: `se(c, *, reduction=16, bias=False)`."""
    bare = [p.replace(annotation=p.empty) for p in inspect.signature(cls).parameters.values()]
    return f"{name}{inspect.Signature(bare)}"


def ranges(cls: type[nn.Module]) -> dict[str, str]:
    """The legal values, in words, of each argument whose annotation restricts them."""
    hints = get_type_hints(cls.__init__, include_extras=True)
    texts = {key: types.limits(hints[key]) for key in inspect.signature(cls).parameters}
    return {key: text for key, text in texts.items() if text}


def arguments(
    module: nn.Module, inputs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the module's forward, from its inputs by name."""
    parameters = inspect.signature(_torch.uncompiled(module).forward).parameters
    keywords = {
        name: value
        for name, value in inputs.items()
        if name in parameters and parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    }
    return tuple(value for name, value in inputs.items() if name not in keywords), keywords


def enforce_signature(name: str, cls: type[nn.Module]) -> None:
    """Make the constructor of the class check its arguments and the number of parameters.

    Args:
        name: the name of the class in error messages.
        cls: the class, changed in place; a class that is already checked is left unchanged.
    """
    init = cls.__init__
    if getattr(init, "checked", None) is cls:
        return

    @functools.wraps(init)
    def __init__(self: nn.Module, /, *args: Any, **config: Any) -> None:
        values = bind(name, cls, args, config)
        if _size(values.values()) >= _MAYBE_LARGE:
            with _limited_parameters(name, values), torch.device("meta"):
                init(cls.__new__(cls), **values)
        with _limited_parameters(name, values):
            init(self, **values)

    __init__.checked = cls  # type: ignore[attr-defined]
    cls.__init__ = __init__  # type: ignore[method-assign, assignment]


class _TooLargeError(Exception):
    """Too many parameters have been registered."""


@contextlib.contextmanager
def _limited_parameters(name: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Count the parameters that are registered in the context; too many raise a `ValueError`."""
    limit = MAX_META_PARAMETERS if torch.empty(0).is_meta else MAX_PARAMETERS
    count, thread = 0, threading.get_ident()

    def add(module: nn.Module, key: str, parameter: Any) -> None:
        nonlocal count
        if threading.get_ident() != thread:
            return  # the hook sees all threads
        count += 0 if parameter is None else parameter.numel()
        if count >= limit:
            raise _TooLargeError

    hook = nn.modules.module.register_module_parameter_registration_hook(add)
    try:
        yield
    except (_TooLargeError, RuntimeError, MemoryError, ArithmeticError, TypeError, ValueError) as e:
        if not (isinstance(e, _TooLargeError) or re.search("verflow|allocate|too large", str(e))):
            raise
        shown = ", ".join(f"{key}={messages.shown(value)}" for key, value in values.items())
        size = f"{count:,} or more" if count >= limit else "too many"
        raise ValueError(
            f"{name}({shown}) would have {size} parameters; a block has fewer than {limit:,}: "
            "take smaller sizes"
        ) from None
    finally:
        hook.remove()


def _size(values: Iterable[Any]) -> float:
    """The product of all numbers above 1 among values and their tuples."""
    numbers = [n for v in values for n in (v if isinstance(v, tuple) else (v,))]
    return math.prod(float(n) for n in numbers if isinstance(n, (int, float)) and n > 1)
