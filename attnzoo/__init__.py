"""A flat catalogue of plug-and-play attention blocks: the authors' numbers, tested, measured."""

from . import blocks as blocks
from .bench import measure
from .blocks.pyraformer import pyraformer_mask
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
