"""Maxima with their first index, against `Tensor.max`."""

import pytest
import torch

from attnzoo.ops import maximum

SHAPES = [(2, 3, 9, 11), (3, 16, 5, 1), (0, 3, 4, 9), (2, 30, 41, 33), (70, 1, 1000, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_first_of_ties_and_where_its_gradient_goes(shape: tuple[int, ...], last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(shape).round().relu().contiguous(memory_format=layout)
    for dim in (1, 2, 3):
        values, indices = maximum.max_with_index(x, dim)
        wanted = x.max(dim)
        assert torch.equal(values, wanted.values)
        assert torch.equal(indices, wanted.indices)
        total, grad = torch.randn_like(x), torch.randn(values.shape)
        scattered = total.scatter_add(dim, indices.unsqueeze(dim), grad.unsqueeze(dim))
        maximum.scatter_to_max(total, dim, indices, grad)
        assert torch.equal(total, scattered)
    values, indices = maximum.max_over_hw(x)
    wanted = x.flatten(2).max(2)
    assert torch.equal(values, wanted.values)
    assert torch.equal(indices, wanted.indices)


def test_nan_is_the_maximum() -> None:
    x = torch.randn(2, 30, 41, 33)
    x[0, 1, 2, 5] = torch.nan
    for values, indices in (maximum.max_with_index(x, 2), maximum.max_over_hw(x)):
        assert values.isnan().sum() == 1
        assert (indices < 41 * 33).all()
