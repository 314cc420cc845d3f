"""Tokens as the cells of a map: rows and columns from their number."""

import math


def scaled_grid(tokens: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of this many tokens in the proportions of `grid`, or None."""
    height, width = grid
    if tokens == height * width:
        return height, width
    if tokens <= 0:
        return None
    rows, columns = math.isqrt(tokens * height // width), math.isqrt(tokens * width // height)
    return (rows, columns) if rows * columns == tokens else None
