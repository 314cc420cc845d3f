"""A flat catalogue of plug-and-play attention blocks: the authors' numbers, tested, measured."""

from . import blocks as blocks
from .bench import measure
from .blocks.pyraformer import pyraformer_mask
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
from .upstream import from_upstream

__version__ = "0.1.0"

__all__ = [
    "Cost",
    "Description",
    "Entry",
    "Extent",
    "UnknownBlockError",
    "build",
    "describe",
    "from_upstream",
    "measure",
    "names",
    "pyraformer_mask",
    "register",
    "verify",
]
