"""The first rows and columns of a map, in a form that exports with dynamic sizes."""

import torch
from torch import Tensor


def crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, C, H, W) to (B, C, *size).

    When compiled, it uses indices: a slice would specialize the graph on whether it crops.
    """
    if not torch.compiler.is_compiling():
        return image[..., : size[0], : size[1]]
    rows, columns = (torch.arange(n, device=image.device) for n in size)
    return image.index_select(2, rows).index_select(3, columns)
