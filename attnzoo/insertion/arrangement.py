"""What is done to a tensor of the network before the block takes it, and undone afterwards."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..ops.grid import scaled_grid

# Tokens before those of a map: none, a class token, one of distillation too, 4 or 8 registers.
KEPT = (0, 1, 2, 4, 5, 8, 9)


class Arrangement(NamedTuple):
    """How a tensor of the network becomes one that the block takes: by moving the channel axis,
    and by taking tokens as a map or a map as tokens."""

    axes: tuple[int, int] | None = None  # channel axis: the network's, and where it is moved
    grid: tuple[int, int] | None = None  # tokens are a map of these rows and columns, or larger
    kept: int = 0  # tokens before those of the map, which pass by the block
    flat: bool = False  # a map is taken as tokens, row by row

    def enter(self, x: Tensor) -> Tensor:
        """The tensor that the block takes."""
        x = x if self.axes is None else x.movedim(*self.axes)
        if self.flat:
            return x.flatten(2).mT  # B HW C
        if self.grid is None:
            return x
        cells = x[:, self.kept :]  # B HW C
        rows, columns = self._size(cells.shape[1])
        return cells.mT.reshape(*cells.shape[::2], rows, columns)  # B C H W

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        """The block's output in the place of `x`."""
        x = x if self.axes is None else x.movedim(*self.axes)
        if self.flat:
            y = y.mT.reshape(x.shape)
        elif self.grid is not None:
            y = y.flatten(2).mT
            y = torch.cat((x[:, : self.kept].to(y.dtype), y), 1) if self.kept else y
        return y if self.axes is None else y.movedim(self.axes[1], self.axes[0])

    def apply(self, block: nn.Module, x: Tensor) -> Tensor:
        """The block on `x`, in the layout of `x`."""
        y: Tensor = block(self.enter(x))
        return y if self == AS_IT_IS else self.leave(y, x).contiguous()

    def _size(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of the map: those of `grid`, or the grid scaled to this many tokens."""
        height, width = self.grid or (1, 1)
        size = scaled_grid(tokens, (height, width))
        if size is None:
            raise ValueError(
                f"{tokens} tokens (without the first {self.kept}) are no map in the proportions of "
                f"{height} x {width}, as the block was inserted for; {height * width} are, or that "
                f"grid scaled: insert it again with as_map=(rows, columns) for other proportions"
            )
        return size


AS_IT_IS = Arrangement()


def infer_grid(tokens: int, image: tuple[int, int]) -> tuple[tuple[int, int], int] | None:
    """Rows and columns of a map in the image's proportions, and how many tokens come before it."""
    for kept in KEPT:
        grid = scaled_grid(tokens - kept, image)
        if grid is not None:
            return grid, kept
    return None
