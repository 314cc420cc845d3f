"""A flat catalogue of plug-and-play attention blocks: the authors' numbers, tested, measured."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .bench import measure
from .insertion import insert, remove
from .integrations.timm import attn_layer
from .reference import verify
from .registry import (
    Cost,
    Description,
    Entry,
    InputSize,
    UnknownBlockError,
    build,
    class_named,
    describe,
    names,
    register,
)
from .weights import from_upstream

if TYPE_CHECKING:
    from . import blocks as blocks
    from . import testing as testing
    from .blocks.jbu import adaptive_conv
    from .blocks.pyraformer import pyraformer_mask
    from .blocks.self_self import remove_global_bias

__version__ = "0.1.0"

Extent = InputSize  # the name of earlier versions

__all__ = [
    "Cost",
    "Description",
    "Entry",
    "Extent",
    "InputSize",
    "UnknownBlockError",
    "adaptive_conv",
    "attn_layer",
    "build",
    "describe",
    "from_upstream",
    "insert",
    "measure",
    "names",
    "pyraformer_mask",
    "register",
    "remove",
    "remove_global_bias",
    "verify",
]


_LAZY = {  # public functions that are defined in block modules
    "adaptive_conv": ".blocks.jbu",
    "pyraformer_mask": ".blocks.pyraformer",
    "remove_global_bias": ".blocks.self_self",
}


# What other catalogues call what is called otherwise here.
_ELSEWHERE = {
    **dict.fromkeys(
        ("list", "list_models", "list_blocks", "available", "models"),
        "attnzoo.names() lists the blocks",
    ),
    **dict.fromkeys(
        ("create", "create_model", "create_block", "make", "get", "get_model", "load"),
        'attnzoo.build("cbam", c=64) builds a block',
    ),
    **dict.fromkeys(
        ("load_pretrained", "from_pretrained", "load_state_dict"),
        'attnzoo.from_upstream("cbam", state_dict, c=64) loads the authors\' weights',
    ),
}


def __getattr__(name: str) -> Any:
    """Classes and functions of the blocks, imported on first access: `import attnzoo` is fast."""
    if name in ("blocks", "testing"):
        return import_module(f".{name}", __name__)
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    cls = None if name.startswith("_") else class_named(name)
    if cls is not None:
        return cls
    hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
