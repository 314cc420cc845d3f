"""A flat catalogue of plug-and-play attention blocks: the authors' numbers, tested, measured."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .bench import measure
from .insert import insert, remove
from .reference import verify
from .registry import (
    Cost,
    Description,
    Entry,
    Extent,
    UnknownBlockError,
    build,
    describe,
    names,
    register,
)
from .timm_nets import attn_layer
from .upstream import from_upstream

if TYPE_CHECKING:
    from . import blocks as blocks
    from .blocks.pyraformer import pyraformer_mask

__version__ = "0.1.0"

__all__ = [
    "Cost",
    "Description",
    "Entry",
    "Extent",
    "UnknownBlockError",
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
    "verify",
]


def __getattr__(name: str) -> Any:
    """The files of the blocks load when the first is asked for, so that importing is quick."""
    if name == "blocks":
        return import_module(".blocks", __name__)
    if name == "pyraformer_mask":
        return import_module(".blocks.pyraformer", __name__).pyraformer_mask
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
