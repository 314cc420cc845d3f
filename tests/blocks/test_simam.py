"""SimAM against its formula, at sizes where the authors' code gives NaN, and in half precision."""

import pytest
import torch
from torch import Tensor

import attnzoo
from attnzoo.testing.closeness import assert_close

from contract import assert_steps_equal, made


def formula(x: Tensor, e_lambda: float) -> Tensor:
    distance = (x - x.mean((2, 3), keepdim=True)) ** 2
    variance = x.flatten(2).var(2, correction=1)[:, :, None, None]
    energy = (distance + 2 * variance + 2 * e_lambda) / (4 * (variance + e_lambda))
    return x / (1 + (-energy).exp())


@pytest.mark.parametrize("size", [(1, 2, 1), (2, 7, 9)], ids=str)
@pytest.mark.parametrize("e_lambda", [1e-4, 0.1, 4.0])
def test_equals_the_papers_energy(e_lambda: float, size: tuple[int, int, int]) -> None:
    b, h, w = size
    at = attnzoo.InputSize(batch=b, height=h, width=w)
    _, block, inputs = made("simam", at, torch.float64, c=5, e_lambda=e_lambda)
    assert_steps_equal(block, inputs, lambda leaves: formula(leaves["x"], e_lambda))


@pytest.mark.parametrize("size", [(1, 1), (6, 5)], ids=str)
def test_constant_channels_have_the_constant_gate(size: tuple[int, int]) -> None:
    x = torch.full((2, 4, *size), 3.0, requires_grad=True)
    y = attnzoo.build("simam", c=4)(x)
    assert_close(y, x * torch.tensor(0.5).sigmoid())
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert_close(grad, torch.full_like(x, 0.5).sigmoid())


def test_sums_of_squares_do_not_overflow_in_half_precision() -> None:
    """At a standard deviation of 30 the sum over 56 x 56 exceeds 65504: all gates would be 0.62."""
    block, x = attnzoo.build("simam", c=4), 30 * torch.randn(2, 4, 56, 56)
    for dtype in (torch.float16, torch.bfloat16):
        given = x.to(dtype)
        assert_close(block(given), formula(given.double(), 1e-4), dtype)
        assert block(given).dtype == dtype


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    x = torch.randn(2, 4, 16, 16) + 3000
    assert_close(attnzoo.build("simam", c=4)(x), formula(x.double(), 1e-4))


def test_it_has_no_state_and_no_multiply_adds() -> None:
    block = attnzoo.from_upstream("simam", {}, c=16)
    assert not block.state_dict()
    assert block.macs(attnzoo.InputSize(3, 1, 5, 7)) == 0
    assert repr(block) == "SimAM(c=16, e_lambda=0.0001)"


@pytest.mark.parametrize("e_lambda", [0, -1.0, 1e-300])
def test_an_e_lambda_too_small_for_float32_is_refused(e_lambda: float) -> None:
    with pytest.raises(ValueError, match="must be at least 1e-30"):
        attnzoo.build("simam", c=16, e_lambda=e_lambda)
