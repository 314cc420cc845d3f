"""bilinear against its formula."""

import math

import pytest
import torch
from torch import Tensor

import attnzoo
from attnzoo.testing.closeness import assert_close


def at(x: Tensor, i: int, j: int, h: int, w: int) -> Tensor:
    """The source at the fine pixel (i, j) of h x w."""
    rows, columns = x.shape[2:]
    y = max((i + 0.5) * rows / h - 0.5, 0.0)
    z = max((j + 0.5) * columns / w - 0.5, 0.0)
    a, b = math.floor(y), math.floor(z)
    c, d = min(a + 1, rows - 1), min(b + 1, columns - 1)
    upper = x[:, :, a, b] * (1 - (z - b)) + x[:, :, a, d] * (z - b)
    lower = x[:, :, c, b] * (1 - (z - b)) + x[:, :, c, d] * (z - b)
    return upper * (1 - (y - a)) + lower * (y - a)


@pytest.mark.parametrize("size", [(7, 10), (2, 3), (1, 1), (3, 16)])
def test_the_formula(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    y = attnzoo.build("bilinear", 3)(x, torch.zeros(2, 1, *size, dtype=torch.uint8))
    wanted = [torch.stack([at(x, i, j, *size) for j in range(size[1])], -1) for i in range(size[0])]
    assert_close(y, torch.stack(wanted, -2))


def test_refusals() -> None:
    block, x = attnzoo.build("bilinear", 3), torch.zeros(1, 3, 2, 2)
    for bad in (torch.zeros(3, 4, 4), torch.zeros(1, 3, 0, 4), torch.zeros(1, 3, 4, 0)):
        with pytest.raises(ValueError, match="guidance has shape"):
            block(x, bad)
    with pytest.raises(TypeError, match="guidance must be a Tensor"):
        block(x, None)
    with pytest.raises(ValueError, match="source has 2 channels"):
        block(x[:, :2], x)
    with pytest.raises(TypeError, match="guidance"):
        block(x)
