"""What is inserted: a block of the catalogue by its name, or copies of a module of the user's."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Entry, Layout, build, find
from ..validation import check
from .layouts import LAYOUTS
from .placing import copied


@dataclass(frozen=True)
class Source:
    """Makes the blocks of an insertion."""

    name: str  # in reports and recipes: the block's, or the class of the module with its package
    layouts: tuple[Layout, ...]
    entry: Entry | None  # None for a module of the user's
    module: nn.Module | None = None

    def config(self, x: Tensor, layout: Layout, given: Mapping[str, Any]) -> dict[str, Any]:
        """Keywords of `build` for a tensor in the block's layout: the given ones, and `c`, `layout`
        and `length`."""
        if self.entry is None:
            return {}
        known = self.entry.signature.parameters
        found: dict[str, Any] = {"c": x.shape[LAYOUTS[layout].axis], **given}
        if "layout" in known:
            found["layout"] = layout
        if "length" in known and layout != "image":
            found.setdefault("length", x.shape[1 if layout == "image_series" else -2])
        return found

    def make(self, config: Mapping[str, Any], device: Any, dtype: torch.dtype | None) -> nn.Module:
        """A block for one place."""
        if self.module is None:
            return build(self.name, **config, device=device, dtype=dtype)
        return copied(self.module, device, dtype)


def source_of(block: str | nn.Module, config: Mapping[str, Any]) -> Source:
    """The source of a block's name or of a module.

    Raises:
        ValueError: the block does not take exactly one tensor, or no layout that is inserted.
        TypeError: `block` is neither, or a keyword is not for an insertion.
    """
    if isinstance(block, nn.Module):
        return _own(block, config)
    if isinstance(block, type) and issubclass(block, nn.Module):
        raise TypeError(
            f"name={block.__name__} is a class; pass a block's name, or a module: "
            f"{block.__name__}(...), of which every place gets a copy"
        )
    entry = find(block)
    _check_call(entry.name, entry.cls.forward, f"layout {', '.join(entry.layouts)}", skip=1)
    if not set(entry.layouts) & set(LAYOUTS):
        raise ValueError(
            f"{block!r} takes {', '.join(entry.layouts)}; a block that is inserted takes one "
            f"tensor: {' or '.join(LAYOUTS)}"
        )
    for key in config.keys() & {"c", "device", "dtype"}:
        raise TypeError(
            f"{key}={config[key]!r} is not for insert: every place has channels, device "
            "and dtype of its own"
        )
    return Source(entry.name, entry.layouts, entry)


def _own(module: nn.Module, config: Mapping[str, Any]) -> Source:
    name = f"{type(module).__module__}:{type(module).__qualname__}"
    _check_call(name, module.forward, "a module of yours")
    for key in config.keys() - {"layout"}:
        raise TypeError(
            f"{key}={config[key]!r} is for a block given by its name; {type(module).__name__} is "
            "built already: build it with that argument, or pass a name of attnzoo.names()"
        )
    if "layout" in config:
        check.choice("layout", config["layout"], tuple(LAYOUTS))
    layouts = (config["layout"],) if "layout" in config else tuple(LAYOUTS)
    return Source(name, layouts, None, module)


def _check_call(name: str, forward: Callable[..., Any], what: str, skip: int = 0) -> None:
    inputs = [
        key
        for key, parameter in [*inspect.signature(forward).parameters.items()][skip:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if len(inputs) > 1:
        raise ValueError(
            f"{name!r} is called with {', '.join(inputs)} ({what}); a block that is inserted takes "
            "one tensor"
        )
