"""Random roundings tell how far a dtype's own rounding moves a result, without running in it."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d

from attnzoo.testing.rounding import Rounded


def gradients(x: Tensor, w: Tensor, b: Tensor) -> list[Tensor]:
    """Of a convolution's weight, and of its bias, which the normalization behind it cancels."""
    x, w, b = (t.detach().clone().requires_grad_() for t in (x, w, b))
    y = batch_norm(conv2d(x, w, b), None, None, training=True).sigmoid()
    return list(torch.autograd.grad(y, (w, b), torch.ones_like(y).tril()))


def off(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    return [float((f.double() - w).norm()) for f, w in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roundings_foretell_the_error_of_the_dtype(dtype: torch.dtype) -> None:
    rounded = [torch.randn(s).to(dtype) for s in ((8, 4, 9, 9), (16, 4, 3, 3), (16,))]
    wanted = gradients(*(t.double() for t in rounded))
    with Rounded(dtype, seed=0):
        told = off(gradients(*(t.double() for t in rounded)), wanted)
    true = off(gradients(*rounded), wanted)
    assert wanted[1].norm() < 1e-12  # zero but for rounding, and yet its error is foretold
    assert all(0.1 < a / b < 10 for a, b in zip(true, told, strict=True))


def test_what_is_exact_stays_exact() -> None:
    x = torch.tensor([0.0, 1.0, float("-inf"), float("inf")], dtype=torch.float64)
    with Rounded(torch.bfloat16, seed=0):
        y = x.clone()
        z = y.view(2, 2)
        index = x.argmax()
        single = x.float() + 1
    assert y[0] == 0
    assert y[2:].tolist() == [float("-inf"), float("inf")]
    assert 0 < abs(float(y[1]) - 1) <= torch.finfo(torch.bfloat16).eps / 2
    assert torch.equal(z.flatten(), y)  # a view is no result of its own
    assert index == 3
    assert torch.equal(single, x.float() + 1)
