"""Hand-written passes where one argument is computed from another, and batched gradients."""

from collections.abc import Callable

import pytest
import torch
from tolerances import assert_close
from torch import Tensor

from attnzoo.ops.by_hand import ByHand


def product(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def backward(
    needs: tuple[bool, ...], args: tuple[Tensor, Tensor], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor, Tensor]:
    x, y = args
    return torch.mul(grad, y, out=torch.empty_like(x)), torch.mul(grad, x, out=torch.empty_like(y))


PAIR = ByHand(product, lambda x, y: (x * y, ()), backward)


def test_second_derivative_where_one_argument_comes_from_another() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(PAIR(x, x.sin()).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_close([first, second], [x.sin() + x * x.cos(), 2 * x.cos() - x * x.sin()])


@pytest.mark.parametrize("way", ["is_grads_batched", "vmap"])
def test_batches_of_gradients(way: str) -> None:
    x, y = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    z, grads = PAIR(x, y), torch.randn(3, 5, dtype=torch.float64)
    pull: Callable[[Tensor], tuple[Tensor, ...]] = lambda g: torch.autograd.grad(  # noqa: E731
        z, (x, y), g, retain_graph=True
    )
    if way == "vmap":
        found = torch.func.vmap(pull)(grads)
    else:
        found = torch.autograd.grad(z, (x, y), grads, is_grads_batched=True)
    assert_close(found, (grads * y, grads * x))


def test_few_numbers_take_the_plain_form() -> None:
    def refuse(*_: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        raise RuntimeError("the hand-written form ran")

    pair = ByHand(product, refuse, backward, least=6)
    assert pair(torch.ones(5), torch.ones(5)).sum() == 5
    with pytest.raises(RuntimeError, match="hand-written"):
        pair(torch.ones(6), torch.ones(6))
