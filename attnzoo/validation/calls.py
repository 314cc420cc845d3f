"""Calls of blocks: arguments of other names, symbolic traces, and `torch.jit.script`.

A symbolic trace calls modules with stand-ins that have no shape, which the checks of a block need.
A block called with one becomes a single node of the graph, as the layers of torch do, whatever
tracer is used.
"""

import copy
import functools
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args

import torch
from torch import nn
from torch.fx import Proxy

from . import messages

UNSCRIPTABLE = (
    "torch.jit.script cannot compile {}, whose code depends on sizes and on the mode; use "
    "torch.jit.trace, torch.export.export or torch.compile"
)
_ROOT = "attnzoo_block"  # where a block that is traced on its own stands in its graph module
# A trace reads the code of the method for its arguments, so that it needs them by name, in front.
_SOURCE = """
def forward(self, {names}):
    if not _compiling() and (_proxy := _find_proxy(({values}))) is not None:
        return _node(self, _proxy, ({values}))
    {check}
    return _original(self, {call})
"""
_CHECK = "if _spare or _unknown: _refuse_call(_spare, _unknown)"
# What other libraries call the arguments of a call.
_ALIASES = {
    "positions": "batch_positions dates days doy timestamps position_ids pos",
    "key_padding_mask": "pad_mask padding_mask mask attention_mask src_key_padding_mask attn_mask",
    "y": "x2 other residual skip",
    "guidance": "guide image hr",
}


def enforce_calls(name: str, cls: type[nn.Module]) -> None:
    """Make every symbolic call of the class one node; refuse unknown arguments and scripting.

    Args:
        name: what messages call the class.
        cls: the class, changed in place; one that is changed already is left as it is.
    """
    original: Any = cls.forward
    if getattr(original, "traced", None) is cls:
        return
    # The traces of torch 2.6 want equal annotations to be one object, which `A | B` never is.
    for key, annotation in original.__annotations__.items():
        if isinstance(annotation, types.UnionType):
            original.__annotations__[key] = Union[get_args(annotation)]  # noqa: UP007
    parameters = [*inspect.signature(original).parameters.values()][1:]
    scope: dict[str, Any] = {
        "_compiling": torch.compiler.is_compiling,
        "_find_proxy": _find_proxy,
        "_original": original,
        "_node": functools.partial(_node, parameters),
        "_refuse_call": functools.partial(_refuse_call, name, parameters),
    }
    exec(_source(parameters), scope)
    forward: Any = functools.wraps(original)(scope["forward"])
    plain = [p.default for p in parameters if p.kind is not p.KEYWORD_ONLY and _has_default(p)]
    forward.__defaults__ = tuple(plain)
    forward.__kwdefaults__ = {
        p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and _has_default(p)
    }

    def refuse(self: nn.Module) -> Any:
        raise ValueError(UNSCRIPTABLE.format(repr(name)))

    forward.traced = cls
    cls.forward = forward
    cls.__prepare_scriptable__ = refuse  # type: ignore[attr-defined]


def _source(parameters: Sequence[inspect.Parameter]) -> str:
    """The method with the parameters of the class's own."""
    bare = [p.replace(default=p.empty, annotation=p.empty) for p in parameters]
    extra = inspect.Parameter
    open_ended = any(p.kind in (extra.VAR_POSITIONAL, extra.VAR_KEYWORD) for p in bare)
    if not open_ended:
        at = sum(p.kind is not extra.KEYWORD_ONLY for p in bare)
        bare.insert(at, extra("_spare", extra.VAR_POSITIONAL))
        bare.append(extra("_unknown", extra.VAR_KEYWORD))
    call: dict[Any, str] = {
        extra.KEYWORD_ONLY: "{0}={0}",
        extra.VAR_POSITIONAL: "*{0}",
        extra.VAR_KEYWORD: "**{0}",
    }
    return _SOURCE.format(
        names=str(inspect.Signature(bare))[1:-1],
        values="".join(f"{p.name}, " for p in parameters),
        call=", ".join(call.get(p.kind, "{0}").format(p.name) for p in parameters),
        check="pass" if open_ended else _CHECK,
    )


def _refuse_call(
    name: str,
    parameters: Sequence[inspect.Parameter],
    spare: tuple[Any, ...],
    unknown: Mapping[str, Any],
) -> None:
    """Raise the TypeError of a call with arguments that the block does not have."""
    known = [p.name for p in parameters]
    usage = f"{name} is called with ({', '.join(known)})"
    for key in unknown:
        meant = next((k for k in known if key.lower() in _ALIASES.get(k, "").split()), None)
        hint = f"; did you mean {meant!r}?" if meant else messages.nearest(key, known)
        raise TypeError(f"{name} has no argument {key!r} in its call{hint}; {usage}")
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    count = len(known) - len(keywords)
    rest = f"; write {' or '.join(f'{k}=...' for k in keywords)} by keyword" if keywords else ""
    raise TypeError(
        f"{name} takes {count} argument{'s' * (count != 1)} by position, not {count + len(spare)}"
        f"{rest}; {usage}"
    )


def _has_default(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty


def _find_proxy(values: Any) -> Proxy | None:
    """A stand-in among the values or in their lists, tuples and dicts."""
    for value in values.values() if isinstance(values, dict) else values:
        found = _find_proxy(value) if isinstance(value, (list, tuple, dict)) else value
        if isinstance(found, Proxy):
            return found
    return None


class _Spread(nn.Module):
    """A block called with its arguments in a row, one for each of its parameters."""

    def __init__(self, block: nn.Module, kinds: Mapping[str, Any]) -> None:
        super().__init__()
        self.block, self.kinds = block, dict(kinds)

    def forward(self, *values: Any) -> Any:
        args, kwargs = _arranged(self.kinds, values)
        return self.block(*args, **kwargs)


def _arranged(kinds: Mapping[str, Any], values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """One value for each parameter as positional and keyword arguments."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for (name, kind), value in zip(kinds.items(), values, strict=True):
        if kind is inspect.Parameter.VAR_POSITIONAL:
            args.extend(value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            kwargs.update(value)
        elif kind is inspect.Parameter.KEYWORD_ONLY:
            kwargs[name] = value
        else:
            args.append(value)
    return args, kwargs


def _node(
    parameters: Sequence[inspect.Parameter], block: nn.Module, proxy: Proxy, values: tuple[Any, ...]
) -> Any:
    """The call as one node of the graph that is being traced."""
    tracer: Any = proxy.tracer
    kinds = {p.name: p.kind for p in parameters}
    if tracer.root is not block:
        args, kwargs = _arranged(kinds, values)
        path = tracer.path_of_module(block)
        return tracer.create_proxy("call_module", path, tuple(args), kwargs)
    # not as a child of the block, and with the parameters of the block
    vars(block)[_ROOT] = _Spread(copy.copy(block), kinds)
    return tracer.create_proxy("call_module", _ROOT, values, {})
