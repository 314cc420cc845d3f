"""The switch between hand-written passes and their plain form."""

import threading

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from attnzoo.ops.by_hand import ByHand, plain_forms

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


pair = ByHand(plain, forward, backward)


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
    with plain_forms():
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
    with pytest.raises(RuntimeError), plain_forms():
        raise RuntimeError
    with plain_forms():
        thread = threading.Thread(target=lambda: pair(*xy, 2))
        thread.start()
        thread.join()
    pair(*xy, 2)
    assert calls == ["forward", "forward"]
