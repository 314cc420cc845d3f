"""The switch between hand-written passes and their plain form."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import attnzoo
from attnzoo.autograd import CustomGradient, reference_forms

from contract import made
from tolerances import assert_close

calls: list[str] = []


def plain(x: Tensor, y: Tensor, power: int) -> Tensor:
    calls.append("plain")
    return (x * y) ** power


def forward(x: Tensor, y: Tensor, power: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    calls.append("forward")
    product = x * y
    return product**power, (product,)


def backward(
    needs: tuple[bool, ...], args: tuple, saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    calls.append("backward")
    (x, y, power), (product,) = args, saved
    common = grad * power * product ** (power - 1)
    return common * y if needs[0] else None, common * x if needs[1] else None, None


pair = CustomGradient(plain, forward, backward)


@pytest.fixture
def xy() -> tuple[Tensor, Tensor]:
    calls.clear()
    return (
        torch.randn(3, dtype=torch.float64, requires_grad=True),
        torch.randn(3, dtype=torch.float64, requires_grad=True),
    )


def test_training_takes_the_pair(xy: tuple[Tensor, Tensor]) -> None:
    pair(*xy, 3).sum().backward()
    assert calls == ["forward", "backward"]


def test_inference_takes_the_forward_alone(xy: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        pair(*xy, 3)
    assert calls == ["forward"]


def test_both_derivatives_are_right(xy: tuple[Tensor, Tensor]) -> None:
    assert torch.autograd.gradcheck(lambda a, b: pair(a, b, 3), xy)
    assert torch.autograd.gradgradcheck(lambda a, b: pair(a, b, 3), xy)


def test_one_gradient_alone(xy: tuple[Tensor, Tensor]) -> None:
    x, y = xy
    (grad,) = torch.autograd.grad(pair(x, y.detach(), 2).sum(), x)
    assert torch.allclose(grad, 2 * x * y * y)


def test_whatever_looks_inside_takes_the_plain_form(xy: tuple[Tensor, Tensor]) -> None:
    x, y = xy
    with reference_forms():
        pair(x, y, 2)
    torch.func.grad(lambda a: pair(a, y.detach(), 2).sum())(x.detach())
    torch.func.vmap(lambda a: pair(a, a, 2))(x.detach())
    with forward_ad.dual_level():
        pair(forward_ad.make_dual(x.detach(), x.detach()), y.detach(), 2)
    with torch.autocast("cpu", torch.bfloat16):
        pair(x, y, 2)
    pair(x, y.float(), 2)
    assert set(calls) == {"plain"}


def test_plain_forms_is_this_threads_alone_and_ends(xy: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(RuntimeError), reference_forms():
        raise RuntimeError
    with reference_forms():
        thread = threading.Thread(target=lambda: pair(*xy, 2))
        thread.start()
        thread.join()
    pair(*xy, 2)
    assert calls == ["forward", "forward"]


def product(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def product_backward(
    needs: tuple[bool, ...], args: tuple[Tensor, Tensor], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor, Tensor]:
    x, y = args
    return torch.mul(grad, y, out=torch.empty_like(x)), torch.mul(grad, x, out=torch.empty_like(y))


product_pair = CustomGradient(product, lambda x, y: (x * y, ()), product_backward)


def test_second_derivative_where_one_argument_comes_from_another() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(product_pair(x, x.sin()).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_close([first, second], [x.sin() + x * x.cos(), 2 * x.cos() - x * x.sin()])


@pytest.mark.parametrize("way", ["is_grads_batched", "vmap"])
def test_batches_of_gradients(way: str) -> None:
    x, y = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    z, grads = product_pair(x, y), torch.randn(3, 5, dtype=torch.float64)
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

    pair = CustomGradient(product, refuse, product_backward, least=6)
    assert pair(torch.ones(5), torch.ones(5)).sum() == 5
    with pytest.raises(RuntimeError, match="hand-written"):
        pair(torch.ones(6), torch.ones(6))


@pytest.mark.parametrize("name", ["cbam", "triplet"])
def test_second_derivatives_of_a_block_equal_its_plain_forms(name: str) -> None:
    """At a size that takes the hand-written pass."""
    _, block, inputs = made(name, attnzoo.InputSize(height=28, width=28), torch.float64, True)
    x = inputs["x"].requires_grad_()

    def second() -> tuple[Tensor, ...]:
        y = block(x)
        (dx,) = torch.autograd.grad(y, x, y.detach().cos(), create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [x, *block.parameters()], allow_unused=True)

    by_hand = second()
    with reference_forms():
        assert_close(by_hand, second())
