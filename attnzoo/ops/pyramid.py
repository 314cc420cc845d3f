"""A pyramid of nodes over a series: its levels, and each node's neighbors, parent and children.

Level 0 is the series itself; a node of level l + 1 summarizes `windows[l]` nodes of level l, its
children, and the last one also adopts the remaining ones. Nodes are numbered level by level, finest
first. A node attends to its neighbors, its parent and its children.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _torch


class Pyramid(NamedTuple):
    """The shape of a pyramid: steps of the series, windows, and the span of neighbors."""

    length: int
    windows: tuple[int, ...]
    inner: int

    @classmethod
    def of(cls, length: int, windows: Sequence[int], inner: int) -> "Pyramid":
        """The pyramid, its span of neighbors cut to the span that covers the whole series."""
        if not torch.compiler.is_compiling():  # a graph of dynamic length needs a fixed span
            inner = min(inner, 2 * length - 1)
        return cls(length, tuple(windows), inner)

    @property
    def slots(self) -> int:
        """How many nodes one node can attend to at most: neighbors, parent, children."""
        return 2 * (self.inner // 2) + 1 + 1 + 2 * max(self.windows) - 1

    @property
    def pairs(self) -> int:
        """How many pairs of nodes attend to each other, each node to itself included."""
        sizes = level_sizes(self.length, self.windows)
        reach = [min(self.inner // 2, size - 1) for size in sizes]
        beside = sum((2 * r + 1) * size - r * (r + 1) for r, size in zip(reach, sizes, strict=True))
        return beside + 2 * sum(sizes[:-1])  # and each node below the top with its parent


def level_sizes(
    length: int, windows: Sequence[int], *, subject: str = "x has {} steps"
) -> list[int]:
    """Nodes of each level, finest first.

    Raises `ValueError` if a level would have none; `subject` is the start of its message.
    """
    least = math.prod(windows)
    if length < least:
        raise ValueError(
            f"{subject.format(length)}; windows={tuple(windows)} need at least {least} for one "
            "node at every level: take a longer series, or fewer or smaller windows"
        )
    sizes = [length]
    for window in windows:
        sizes.append(sizes[-1] // window)
    return sizes


def neighbors(pyramid: Pyramid, device: torch.device) -> tuple[Tensor, Tensor]:
    """The nodes that each node attends to, (S, slots), and which slots are empty.

    An empty slot contains the index of the node itself.
    """
    index, empty = tables(_neighbors, pyramid, device)
    return index, empty


def ancestors(pyramid: Pyramid, device: torch.device) -> Tensor:
    """The node of each level that each step belongs to, (T, levels), the step itself first."""
    return tables(_ancestors, pyramid, device)[0]


def own_sizes(pyramid: Pyramid, lengths: Tensor) -> list[Tensor]:
    """Nodes of each level of series of different lengths (N,), each (N, 1, 1), finest first."""
    sizes = [lengths[:, None, None]]
    for window in pyramid.windows:
        sizes.append(sizes[-1] // window)
    return sizes


def own_neighbors(pyramid: Pyramid, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """`neighbors` of each sample, (N, S, slots), in a batch padded to the pyramid's length.

    A sample's own nodes come first in every level; the others attend to themselves alone.
    """
    sizes, own = level_sizes(pyramid.length, pyramid.windows), own_sizes(pyramid, lengths)
    starts = [sum(sizes[:level]) for level in range(len(sizes))]
    columns = []
    for level, (size, start) in enumerate(zip(sizes, starts, strict=True)):
        node = torch.arange(size, device=lengths.device)[:, None]
        parts = (
            _beside(pyramid, node, own[level], start),
            _above(pyramid, node, level, own, starts),
            _below(pyramid, node, level, own, starts),
        )
        index, exists = (
            torch.cat([part[i].expand(len(lengths), size, -1) for part in parts], 2) for i in (0, 1)
        )
        itself = start + node
        exists = torch.where(node < own[level], exists, index == itself)
        columns.append((torch.where(exists, index, itself), ~exists))
    index, empty = (torch.cat(part, 1) for part in zip(*columns, strict=True))
    return index, empty


def own_ancestors(pyramid: Pyramid, lengths: Tensor) -> Tensor:
    """`ancestors` of each sample, (N, T, levels), in a batch padded to the pyramid's length."""
    sizes, own = level_sizes(pyramid.length, pyramid.windows), own_sizes(pyramid, lengths)
    node = torch.arange(pyramid.length, device=lengths.device).expand(len(lengths), -1)
    columns, start = [node], 0
    for window, below, size in zip(pyramid.windows, sizes, own[1:], strict=False):
        start = start + below
        node = (node // window).minimum(size[:, 0] - 1).clamp(min=0)
        columns.append(start + node)
    return torch.stack(columns, 2)


_Size = int | Tensor  # of a level, or of each sample's, (N, 1, 1)
_Make = Callable[[Pyramid, torch.device], tuple[Tensor, ...]]


def tables(make: _Make, pyramid: Pyramid, device: torch.device) -> tuple[Tensor, ...]:
    """`make(pyramid, device)`, cached for eager calls; tracers and transforms get fresh tensors."""
    if (
        torch.compiler.is_compiling()
        or _torch.transforms_active()
        or _torch.dispatch_modes_active()
    ):
        return make(pyramid, device)
    return _cached(make, pyramid, device)


@lru_cache(maxsize=32)
def _cached(make: _Make, pyramid: Pyramid, device: torch.device) -> tuple[Tensor, ...]:
    with torch.inference_mode(False):  # tensors made in inference mode could never be trained with
        return make(pyramid, device)


def _neighbors(pyramid: Pyramid, device: torch.device) -> tuple[Tensor, Tensor]:
    sizes = level_sizes(pyramid.length, pyramid.windows)
    starts = [sum(sizes[:level]) for level in range(len(sizes))]
    columns = []
    for level, (size, start) in enumerate(zip(sizes, starts, strict=True)):
        node = torch.arange(size, device=device)[:, None]
        parts = (
            _beside(pyramid, node, size, start),
            _above(pyramid, node, level, sizes, starts),
            _below(pyramid, node, level, sizes, starts),
        )
        index, exists = (torch.cat(part, 1) for part in zip(*parts, strict=True))
        columns.append((torch.where(exists, index, start + node), ~exists))
    index, empty = (torch.cat(part) for part in zip(*columns, strict=True))
    return index, empty


_Slots = tuple[Tensor, Tensor]  # (level's nodes, some slots): node in the slot, whether it exists


def _beside(pyramid: Pyramid, node: Tensor, size: _Size, start: int) -> _Slots:
    """The neighbors on the same level, the node itself included."""
    reach = pyramid.inner // 2
    near = node + torch.arange(-reach, reach + 1, device=node.device)
    return start + near, (near >= 0) & (near < size)


def _above(
    pyramid: Pyramid, node: Tensor, level: int, sizes: Sequence[_Size], starts: Sequence[int]
) -> _Slots:
    """The parent."""
    if level == len(pyramid.windows):
        return node, node < 0
    parent = (node // pyramid.windows[level]).clamp(max=sizes[level + 1] - 1)
    return starts[level + 1] + parent, parent >= 0


def _below(
    pyramid: Pyramid, node: Tensor, level: int, sizes: Sequence[_Size], starts: Sequence[int]
) -> _Slots:
    """The children, the last node's adopted ones included."""
    place = torch.arange(2 * max(pyramid.windows) - 1, device=node.device)
    if level == 0:
        return node + 0 * place, (node + place) < 0
    window = pyramid.windows[level - 1]
    child = node * window + place
    parent = (child // window).clamp(max=sizes[level] - 1)
    return starts[level - 1] + child, (parent == node) & (child < sizes[level - 1])


def _ancestors(pyramid: Pyramid, device: torch.device) -> tuple[Tensor]:
    sizes = level_sizes(pyramid.length, pyramid.windows)
    node = torch.arange(pyramid.length, device=device)
    columns, start = [node], 0
    for window, below, size in zip(pyramid.windows, sizes, sizes[1:], strict=False):
        start = start + below
        node = (node // window).clamp(max=size - 1)
        columns.append(start + node)
    return (torch.stack(columns, 1),)
