"""The layouts that a block can be inserted in, and where each has its channels."""

from collections.abc import Mapping
from typing import NamedTuple

from ..registry import Layout


class _Standard(NamedTuple):
    """The channel axis of a layout, and its shape as text."""

    axis: int
    words: str


LAYOUTS: Mapping[Layout, _Standard] = {
    "image": _Standard(1, "(B, C, H, W)"),
    "sequence": _Standard(-1, "(B, ..., T, C)"),
    "image_series": _Standard(2, "(B, T, C, H, W)"),
}
