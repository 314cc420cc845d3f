"""Pyramidal attention without copies of keys and values.

Scores between neighbors are the diagonals of small matrix products over blocks of consecutive
nodes; scores between a parent and its children are products of one row with consecutive rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops import pyramid_attention as reference
from ..ops.pyramid import Pyramid, level_sizes, neighbors, tables
from .custom_gradient import Pair, custom_gradient

_BLOCK = 16  # nodes of one small matrix product


def _forward(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, pyramid: Pyramid
) -> tuple[Tensor, tuple[Tensor, ...]]:
    layout = _Layout.of(pyramid, k)
    scores = layout.dots(layout.to_rows(q), layout.to_rows(k))
    (outside,) = tables(_outside, pyramid, q.device)
    layout.main(scores)[..., : layout.band].masked_fill_(outside, float("-inf"))
    weights = torch.softmax(scores, -1)
    out = layout.sums(layout.with_dropout(weights, keep), layout.to_rows(v))
    return layout.from_rows(out, q.shape[1]), (weights,)


def _backward(
    needs: tuple[bool, ...], args: tuple[Tensor, ...], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    q, k, v, keep, pyramid = args
    (weights,) = saved
    layout = _Layout.of(pyramid, k)  # type: ignore[arg-type]
    grad_line = layout.to_rows(grad)
    grad_q = grad_k = grad_v = None
    if needs[2]:
        sums = layout.sums(layout.with_dropout(weights, keep), grad_line, transposed=True)
        grad_v = layout.from_rows(sums, v.shape[1])
    if needs[0] or needs[1]:
        d_scores = layout.with_dropout(layout.dots(grad_line, layout.to_rows(v), empty=0.0), keep)
        d_scores = (d_scores - (d_scores * weights).sum(-1, keepdim=True)).mul_(weights)
        grad_q = layout.from_rows(layout.sums(d_scores, layout.to_rows(k)), q.shape[1])
        grad_k = layout.from_rows(
            layout.sums(d_scores, layout.to_rows(q), transposed=True), k.shape[1]
        )
    return grad_q, grad_k, grad_v, None, None


class _Family(NamedTuple):
    """Consecutive parents with `width` consecutive children each, in columns from `slot` on."""

    child: int
    parent: int
    parents: int
    width: int
    slot: int


class _Layout(NamedTuple):
    """All sequences of a batch and its heads as rows of one matrix, called a line below.

    Every sequence is followed by rows of zeros, and the line has `reach` such rows at both ends.
    The blocks of rows, and the windows that their nodes attend to (`reach` more rows on both
    sides), are then strided views, which a batched matrix product reads without a copy. The columns
    of scores and weights are the slots: `band` neighbors, the parent, the children.
    """

    batch: int
    heads: int
    rows: int  # per sequence: a multiple of `block`, with at least `reach` rows of zeros at the end
    block: int
    reach: int
    slots: int
    families: tuple[_Family, ...]

    @classmethod
    def of(cls, pyramid: Pyramid, k: Tensor) -> "_Layout":
        """The layout of all heads of keys (B, S, H, D)."""
        families = tuple(_families(pyramid))
        reach = pyramid.inner // 2
        block = max(_BLOCK, reach)
        return cls(
            batch=k.shape[0],
            heads=k.shape[2],
            rows=_rows(k.shape[1], block, reach),
            block=block,
            reach=reach,
            slots=2 * reach + 2 + max(f.slot + f.width for f in families),
            families=families,
        )

    @property
    def band(self) -> int:
        return 2 * self.reach + 1

    def main(self, line: Tensor) -> Tensor:
        """A line without the zeros at its ends, by sequence: (BH, rows, D)."""
        rows = self.batch * self.heads * self.rows
        return line[self.reach : self.reach + rows].view(
            self.batch * self.heads, self.rows, line.shape[-1]
        )

    def to_rows(self, x: Tensor) -> Tensor:
        """(B, Q, H, D) as a line."""
        width = x.shape[-1]
        count = self.batch * self.heads * self.rows
        line = x.new_empty(count + 2 * self.reach, width)
        line[: self.reach] = 0
        line[self.reach + count :] = 0
        by_head = self.main(line).view(self.batch, self.heads, self.rows, width)
        by_head[:, :, : x.shape[1]] = x.transpose(1, 2)
        by_head[:, :, x.shape[1] :] = 0
        return line

    def from_rows(self, rows: Tensor, nodes: int) -> Tensor:
        """(BH, rows, D) back to (B, nodes, H, D)."""
        by_head = rows.view(self.batch, self.heads, self.rows, rows.shape[-1])
        return by_head[:, :, :nodes].transpose(1, 2).contiguous()

    def with_dropout(self, weights: Tensor, keep: Tensor | None) -> Tensor:
        """A line of weights times the factors of dropout, (B, H, Q, slots), if there are any."""
        if keep is None:
            return weights
        weights = weights.clone()
        by_head = self.main(weights).view(self.batch, self.heads, self.rows, self.slots)
        by_head[:, :, : keep.shape[2]] *= keep[..., : self.slots]
        return weights

    def dots(self, a: Tensor, b: Tensor, empty: float = float("-inf")) -> Tensor:
        """A line of every row's dot products: a row of `a` with each row of `b` it attends to.

        Slots without a node get the value `empty`.
        """
        line = a.new_full((len(a), self.slots), empty)
        line[: self.reach] = line[len(line) - self.reach :] = 0
        out, a_rows, b_rows = self.main(line), self.main(a), self.main(b)
        band = self._blocks(a) @ self._windows(b).mT
        out[..., : self.band] = self._diagonals(band).reshape(*out.shape[:2], self.band)
        for f in self.families:
            up, down = self._links(out, f)
            up.copy_((_children(a_rows, f) * _parents(b_rows, f)).sum(-1))
            down.copy_((_children(b_rows, f) * _parents(a_rows, f)).sum(-1))
        return line

    def sums(self, weights: Tensor, b: Tensor, *, transposed: bool = False) -> Tensor:
        """For every row, the weighted sum of the rows of `b` that it attends to: (BH, rows, D).

        With `transposed`, the sum of the rows that attend to it. `weights` and `b` are lines.
        """
        count = len(b) - 2 * self.reach
        band = b.new_zeros(count // self.block, self.block, self.block + 2 * self.reach)
        step, start = (
            (self.slots - 1, 2 * self.reach) if transposed else (1, self.reach * self.slots)
        )
        self._diagonals(band).copy_(
            weights.as_strided(
                (len(band), self.block, self.band),
                (self.block * self.slots, self.slots, step),
                start,
            )
        )
        out = (band @ self._windows(b)).view(self.batch * self.heads, self.rows, b.shape[-1])
        rows, b_rows = self.main(weights), self.main(b)
        for f in self.families:
            up, down = self._links(rows, f)
            to_child, to_parent = (down, up) if transposed else (up, down)
            _children(out, f).addcmul_(to_child.unsqueeze(-1), _parents(b_rows, f))
            terms = to_parent.unsqueeze(-1) * _children(b_rows, f)
            _parents(out, f).add_(terms.sum(2, keepdim=True))
        return out

    def _links(self, rows: Tensor, f: _Family) -> tuple[Tensor, Tensor]:
        """The parent's slot in each child's row, and each child's in its parent's row.

        Both are (BH, parents, width).
        """
        first = self.band + 1 + f.slot
        return (
            _children(rows, f)[..., self.band],
            _parents(rows, f)[..., 0, first : first + f.width],
        )

    def _blocks(self, line: Tensor) -> Tensor:
        count = (len(line) - 2 * self.reach) // self.block
        main = line[self.reach : len(line) - self.reach]
        return main.view(count, self.block, line.shape[-1])

    def _windows(self, line: Tensor) -> Tensor:
        """Every block with `reach` more rows on both sides, as overlapping views."""
        width, count = line.shape[-1], (len(line) - 2 * self.reach) // self.block
        shape = (count, self.block + 2 * self.reach, width)
        return line.as_strided(shape, (self.block * width, width, 1))

    def _diagonals(self, band: Tensor) -> Tensor:
        """The entries of (M, block, block + 2 reach) for pairs of neighbors, (M, block, band)."""
        width = band.shape[-1]
        shape = (len(band), self.block, self.band)
        return band.as_strided(shape, (self.block * width, width + 1, 1))


def _children(rows: Tensor, f: _Family) -> Tensor:
    """(BH, rows, D) to (BH, parents, width, D)."""
    size = f.parents * f.width
    shape = (rows.shape[0], f.parents, f.width, rows.shape[-1])
    return rows[:, f.child : f.child + size].view(shape)


def _parents(rows: Tensor, f: _Family) -> Tensor:
    """(BH, rows, D) to (BH, parents, 1, D)."""
    return rows[:, f.parent : f.parent + f.parents].unsqueeze(2)


def _families(pyramid: Pyramid) -> Iterator[_Family]:
    """Every level's families of `window` children, and the rest, which its last parent adopts."""
    sizes = level_sizes(pyramid.length, pyramid.windows)
    child = 0
    for window, size, parents in zip(pyramid.windows, sizes, sizes[1:], strict=False):
        parent = child + size
        yield _Family(child, parent, parents, window, 0)
        rest = size - parents * window
        if rest:
            yield _Family(parent - rest, parent + parents - 1, 1, rest, window)
        child = parent


def _rows(nodes: int, block: int, reach: int) -> int:
    return -(-nodes // block) * block + -(-reach // block) * block


def _outside(pyramid: Pyramid, device: torch.device) -> tuple[Tensor]:
    """Which slots of the band lie outside a node's level; rows of zeros attend to themselves."""
    _, empty = neighbors(pyramid, device)
    reach = pyramid.inner // 2
    rows = _rows(len(empty), max(_BLOCK, reach), reach)
    outside = torch.ones(rows, 2 * reach + 1, dtype=torch.bool, device=device)
    outside[:, reach] = False
    outside[: len(empty)] = empty[:, : 2 * reach + 1]
    return (outside,)


pyramid_attention = custom_gradient(reference.pyramid_attention, Pair(_forward, _backward))
