"""Finds what `attnzoo check` and the pytest plugin are to check, from words that JSON can hold."""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

from torch import nn

from ..registry import find, names
from ..validation import messages
from .api import subject_from
from .subject import Subject


class Spec(TypedDict, total=False):
    """A target, and how it is built and called."""

    target: str  # a registered name, FILE.py, FILE.py:Class or package.module:Class
    config: dict[str, Any]
    example: str | None  # shapes, such as 2x64x14x14


def subjects(spec: Spec) -> list[Subject]:
    """What the target names: one subject, or all that a file has.

    Raises ValueError, worded, if there is none or it cannot be built or called.
    """
    target, config = spec["target"], dict(spec.get("config") or {})
    example = spec.get("example")
    place, _, attribute = target.partition(":")
    if place.endswith(".py"):
        module = _import_file(Path(place))
    elif attribute:
        module = import_named(place)
    else:
        block = subject_from(find(target).name, config, example)
        block.build()  # a bad config is the caller's mistake, not the block's
        return [block]
    found = [attribute_of(module, attribute)] if attribute else list(_blocks_of(module, config))
    if not found:
        raise ValueError(
            f"{target} defines no nn.Module class that takes config={config}; name one: "
            f"{place}:ITS_CLASS, with --config"
        )
    return [_subject(thing, config, example, spec) for thing in found]


def _subject(thing: Any, config: dict[str, Any], example: str | None, spec: Spec) -> Subject:
    name = thing if isinstance(thing, str) else thing.__name__
    if not isinstance(thing, str):
        config = config or _default_config(thing)
    place = spec["target"].partition(":")[0]
    own = {"config": config, "example": example}
    label = name if not isinstance(thing, str) else find(name).cls.__name__
    try:
        subject = subject_from(thing, config, example)
        return dataclasses.replace(subject, spec={"target": f"{place}:{label}", **own})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} of {spec['target']}: {error}") from error


def _default_config(thing: Any) -> dict[str, Any]:
    """`{"c": 64}` for a constructor that needs one argument alone."""
    needed = [
        key
        for key, p in inspect.signature(thing).parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        shown = ", ".join(f'"{key}": ...' for key in needed)
        raise ValueError(f"{thing.__name__} needs {', '.join(needed)}: --config '{{{shown}}}'")
    return dict.fromkeys(needed, 64)


def _blocks_of(module: ModuleType, config: Mapping[str, Any]) -> Iterator[Any]:
    """The blocks that a file registers; if none, its own public module classes."""
    registered = [name for name in names() if find(name).cls.__module__ == module.__name__]
    if registered:
        yield from registered
        return
    for name, thing in vars(module).items():
        own = isinstance(thing, type) and issubclass(thing, nn.Module)
        if own and thing.__module__ == module.__name__ and not name.startswith("_"):
            keys = inspect.signature(thing).parameters
            if all(key in keys for key in config):
                yield thing


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    path = path.resolve()
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = path.stem if path.stem.isidentifier() else f"checked_{digest}"
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None:
        name = f"{name}_{digest}"
    sys.path.insert(0, str(path.parent))
    made = importlib.util.spec_from_file_location(name, path)
    if made is None or made.loader is None:
        raise ValueError(f"{str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(made)
    sys.modules[name] = module  # pickle looks for the classes there
    try:
        made.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def import_named(name: str) -> ModuleType:
    """The module of a dotted name; raises ValueError, worded, if it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} cannot be imported: {error}") from error


def attribute_of(module: ModuleType, name: str) -> Any:
    """The class or function of a module; raises ValueError with the nearest names."""
    thing = getattr(module, name, None)
    if thing is None or not callable(thing):
        near = messages.nearest(name, [key for key in vars(module) if not key.startswith("_")])
        raise ValueError(f"{module.__name__} has no class or function {name!r}{near}")
    return thing
