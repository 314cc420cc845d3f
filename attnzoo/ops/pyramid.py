"""A pyramid of nodes over a series: its levels, who is whose neighbour, parent and child.

Level 0 is the series itself; a node of level l + 1 stands for `windows[l]` nodes of level l, its
children, and the last one adopts the children left over. All levels lie one behind the other,
finest first. A node attends to its neighbours, its parent and its children.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Pyramid(NamedTuple):
    """The shape of a pyramid: steps of the series, windows, and the span of neighbours."""

    length: int
    windows: tuple[int, ...]
    inner: int

    @classmethod
    def over(cls, length: int, windows: tuple[int, ...], inner: int) -> "Pyramid":
        """The pyramid, its span of neighbours no wider than the series, where it takes all in."""
        if not torch.compiler.is_compiling():  # a graph for any length keeps the span as it is
            inner = min(inner, 2 * length - 1)
        return cls(length, windows, inner)

    @property
    def slots(self) -> int:
        """How many nodes one node can attend to at most: neighbours, parent, children."""
        return 2 * (self.inner // 2) + 1 + 1 + 2 * max(self.windows) - 1


def level_sizes(length: int, windows: Sequence[int], *, shown: str = "x has {} steps") -> list[int]:
    """Nodes of each level, finest first; refused, in words, where a level would have none."""
    least = math.prod(windows)
    if length < least:
        raise ValueError(
            f"{shown.format(length)}; windows={tuple(windows)} need at least {least} for one node "
            "at every level: take a longer series, or fewer or smaller windows"
        )
    sizes = [length]
    for window in windows:
        sizes.append(sizes[-1] // window)
    return sizes


def neighbours(pyramid: Pyramid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Whom each node attends to, (S, slots), and which slots are empty; those hold the node."""
    index, empty = tables(_neighbours, pyramid, device)
    return index, empty


def ancestors(pyramid: Pyramid, device: torch.device) -> Tensor:
    """The node of each level that each step belongs to, (T, levels), itself first."""
    return tables(_ancestors, pyramid, device)[0]


_Make = Callable[[Pyramid, torch.device], tuple[Tensor, ...]]


def tables(make: _Make, pyramid: Pyramid, device: torch.device) -> tuple[Tensor, ...]:
    """Tables of eager calls are kept; whatever traces or transforms the call makes its own."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    ):
        return make(pyramid, device)
    return _kept(make, pyramid, device)


@lru_cache(maxsize=32)
def _kept(make: _Make, pyramid: Pyramid, device: torch.device) -> tuple[Tensor, ...]:
    with torch.inference_mode(False):
        return make(pyramid, device)


def _neighbours(pyramid: Pyramid, device: torch.device) -> tuple[Tensor, Tensor]:
    reach, widest = pyramid.inner // 2, max(pyramid.windows)
    sizes = level_sizes(pyramid.length, pyramid.windows)
    beside = torch.arange(-reach, reach + 1, device=device)
    below = torch.arange(2 * widest - 1, device=device)
    tables, starts, start = [], [], 0
    for size in sizes:
        starts.append(start)
        start = start + size
    for level, size in enumerate(sizes):
        node = torch.arange(size, device=device)[:, None]
        near = node + beside
        found = [(starts[level] + near, (near >= 0) & (near < size))]
        if level < len(pyramid.windows):
            parent = (node // pyramid.windows[level]).clamp(max=sizes[level + 1] - 1)
            found.append((starts[level + 1] + parent, parent >= 0))
        else:
            found.append((node, node < 0))
        if level:
            child = node * pyramid.windows[level - 1] + below
            theirs = (child // pyramid.windows[level - 1]).clamp(max=size - 1)
            own = (theirs == node) & (child < sizes[level - 1])
            found.append((starts[level - 1] + child, own))
        else:
            found.append((node + 0 * below, (node + below) < 0))
        index, held = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        tables.append((torch.where(held, index, starts[level] + node), ~held))
    index, empty = (torch.cat(parts) for parts in zip(*tables, strict=True))
    return index, empty


def _ancestors(pyramid: Pyramid, device: torch.device) -> tuple[Tensor]:
    sizes = level_sizes(pyramid.length, pyramid.windows)
    node = torch.arange(pyramid.length, device=device)
    found, start = [node], 0
    for window, below, size in zip(pyramid.windows, sizes, sizes[1:], strict=False):
        start = start + below
        node = (node // window).clamp(max=size - 1)
        found.append(start + node)
    return (torch.stack(found, 1),)
