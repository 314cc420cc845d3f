"""Hand-written gradients: when they run, and that each of them equals its reference form."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

import attnzoo
from attnzoo.autograd import Pair, custom_gradient, reference_forms
from attnzoo.ops import chunks, pyramid_attention
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import call, tensors

from contract import ODD, blocks, made
from custom_gradients import recorded

calls: list[str] = []


def reference(x: Tensor, y: Tensor, power: int) -> Tensor:
    calls.append("reference")
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


pair = custom_gradient(reference, Pair(forward, backward))


class Subclass(Tensor):
    """An ordinary tensor of another type."""


@pytest.fixture
def xy() -> tuple[Tensor, Tensor]:
    calls.clear()
    return (
        torch.randn(3, dtype=torch.float64, requires_grad=True),
        torch.randn(3, dtype=torch.float64, requires_grad=True),
    )


def test_training_runs_the_pair(xy: tuple[Tensor, Tensor]) -> None:
    pair(*xy, 3).sum().backward()
    assert calls == ["forward", "backward"]


def test_inference_runs_only_the_forward_pass(
    xy: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And makes no node of a graph, which takes as long as a small block."""
    monkeypatch.setattr(torch.autograd.Function, "apply", None)
    with torch.no_grad():
        pair(*xy, 3)
    pair(*(t.detach() for t in xy), 3)
    assert calls == ["forward", "forward"]


def test_first_and_second_derivatives(xy: tuple[Tensor, Tensor]) -> None:
    assert torch.autograd.gradcheck(lambda a, b: pair(a, b, 3), xy)
    assert torch.autograd.gradgradcheck(lambda a, b: pair(a, b, 3), xy)


def test_one_gradient_alone(xy: tuple[Tensor, Tensor]) -> None:
    x, y = xy
    (grad,) = torch.autograd.grad(pair(x, y.detach(), 2).sum(), x)
    assert torch.allclose(grad, 2 * x * y * y)


def test_tracers_and_transforms_run_the_reference_form(xy: tuple[Tensor, Tensor]) -> None:
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
    pair(*torch.ones(2, 3, device="meta"), 2)
    pair(x.detach().as_subclass(Subclass), y, 2)
    make_fx(lambda a: pair(a, y.detach(), 2))(x.detach())
    constant = y.detach()
    torch.jit.trace(lambda a: pair(a, constant, 2), x.detach(), check_trace=False)
    assert calls == ["reference"] * 10


def test_compilers_run_the_reference_form(
    xy: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    pair(*xy, 2)
    assert calls == ["reference"]


def test_reference_forms_affects_one_thread_and_ends(xy: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(RuntimeError), reference_forms():
        raise RuntimeError
    with reference_forms():
        with reference_forms():
            pass
        pair(*xy, 2)
    assert calls.pop() == "reference"
    with reference_forms():
        thread = threading.Thread(target=lambda: pair(*xy, 2))
        thread.start()
        thread.join()
    pair(*xy, 2)
    assert calls == ["forward", "forward"]


@pytest.mark.parametrize("differentiable", [False, True])
def test_second_derivatives_run_a_differentiable_backward_pass(
    xy: tuple[Tensor, Tensor], differentiable: bool
) -> None:
    pair = custom_gradient(reference, Pair(forward, backward, differentiable=differentiable))
    torch.autograd.grad(pair(*xy, 2).sum(), xy, create_graph=True)
    assert calls == ["forward", "backward" if differentiable else "reference"]


@pytest.mark.parametrize("again", [False, True], ids=["pair", "reference"])
def test_autocast_is_off_in_the_backward_pass(again: bool) -> None:
    """The pair ran outside of it, whatever is enabled around `backward()`."""
    enabled: list[bool] = []

    def product(x: Tensor, y: Tensor) -> Tensor:
        enabled.append(torch.is_autocast_enabled("cpu"))
        return x @ y

    def slopes(needs: object, args: tuple[Tensor, Tensor], saved: object, grad: Tensor) -> tuple:
        x, y = args
        enabled.append(torch.is_autocast_enabled("cpu"))
        return grad @ y.mT, x.mT @ grad

    x, y = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    z = custom_gradient(product, Pair(lambda x, y: (x @ y, ()), slopes))(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        torch.autograd.grad(z.sum(), (x, y), create_graph=again)
    assert enabled == [False]


def test_an_output_that_is_a_view_takes_a_sum_in_place() -> None:
    def tail(x: Tensor) -> Tensor:
        return (2 * x)[1:].mT

    function = custom_gradient(
        tail, Pair(lambda x: (tail(x), ()), lambda *a: (F.pad(2 * a[-1].mT, (0, 0, 1, 0)),))
    )
    x = torch.randn(4, 3, requires_grad=True)
    y = function(x).add_(1)
    assert_close(y, (2 * x)[1:].mT + 1)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad[:, 0], torch.tensor([0.0, 2.0, 2.0, 2.0]))


def test_second_derivatives_where_an_argument_is_not_used() -> None:
    def first(x: Tensor, y: Tensor) -> Tensor:
        return x.square()

    def slopes(needs: object, args: tuple[Tensor, Tensor], saved: object, grad: Tensor) -> tuple:
        return 2 * args[0] * grad, None

    function = custom_gradient(first, Pair(lambda x, y: (x.square(), ()), slopes))
    x, y = (torch.randn(3, requires_grad=True) for _ in range(2))
    found = torch.autograd.grad(function(x, y).sum(), (x, y), create_graph=True, allow_unused=True)
    assert_close(found[0], 2 * x)
    assert found[1] is None


def product(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def product_backward(
    needs: tuple[bool, ...], args: tuple[Tensor, Tensor], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor, Tensor]:
    x, y = args
    return torch.mul(grad, y, out=torch.empty_like(x)), torch.mul(grad, x, out=torch.empty_like(y))


product_pair = custom_gradient(product, Pair(lambda x, y: (x * y, ()), product_backward))


def test_second_derivative_if_one_argument_depends_on_another() -> None:
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(product_pair(x, x.sin()).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_close([first, second], [x.sin() + x * x.cos(), 2 * x.cos() - x * x.sin()])


@pytest.mark.parametrize("batching", ["is_grads_batched", "vmap"])
def test_batches_of_gradients(batching: str) -> None:
    x, y = (torch.randn(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    z, grads = product_pair(x, y), torch.randn(3, 5, dtype=torch.float64)
    pull: Callable[[Tensor], tuple[Tensor, ...]] = lambda g: torch.autograd.grad(  # noqa: E731
        z, (x, y), g, retain_graph=True
    )
    if batching == "vmap":
        found = torch.func.vmap(pull)(grads)
    else:
        found = torch.autograd.grad(z, (x, y), grads, is_grads_batched=True)
    assert_close(found, (grads * y, grads * x))


def test_a_batch_of_gradients_of_one_of_two_outputs() -> None:
    """The gradient of the other output is then not batched."""

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.square()

    def both_backward(
        needs: tuple[bool, ...], args: tuple[Tensor], saved: tuple[Tensor, ...], *grads: Tensor
    ) -> tuple[Tensor]:
        (x,) = args
        out = torch.mul(grads[0], x.cos(), out=torch.empty_like(x))  # fails on batched gradients
        return (out.add_(torch.mul(grads[1], 2 * x, out=torch.empty_like(x))),)

    function = custom_gradient(both, Pair(lambda x: (both(x), ()), both_backward))
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    grads = torch.randn(3, 5, dtype=torch.float64)
    for output, derivative in zip(function(x), both_derivatives(x), strict=True):
        (found,) = torch.autograd.grad(output, x, grads, is_grads_batched=True, retain_graph=True)
        assert_close(found, grads * derivative)


def both_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.cos(), 2 * x


def test_small_tensors_use_the_reference_form() -> None:
    def refuse(*_: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        raise RuntimeError("the hand-written form ran")

    pair = custom_gradient(product, Pair(refuse, product_backward, min_numel=6))
    assert pair(torch.ones(5), torch.ones(5)).sum() == 5
    with pytest.raises(RuntimeError, match="hand-written"):
        pair(torch.ones(6), torch.ones(6))


@pytest.mark.parametrize("half", [True, False])
def test_half_precision_takes_the_pair_where_it_may(half: bool, xy: tuple[Tensor, Tensor]) -> None:
    pair = custom_gradient(reference, Pair(forward, backward, half=half))
    pair(*(t.bfloat16() for t in xy), 2)
    pair(*(t.float() for t in xy), 2)
    assert calls == ["forward" if half else "reference", "forward"]


@pytest.mark.parametrize("name", ["cbam", "triplet"])
def test_second_derivatives_of_a_block_equal_its_reference_forms(name: str) -> None:
    """At a size at which the hand-written pass runs."""
    _, block, inputs = made(name, attnzoo.InputSize(height=40, width=30), torch.float64, True)
    x = inputs["x"].requires_grad_()

    def second() -> tuple[Tensor, ...]:
        y = block(x)
        (dx,) = torch.autograd.grad(y, x, y.detach().cos(), create_graph=True)
        return torch.autograd.grad(dx.square().sum(), [x, *block.parameters()], allow_unused=True)

    by_hand = second()
    with reference_forms():
        assert_close(by_hand, second())


def derivatives(
    function: Callable[..., object], args: tuple[object, ...], wanting: set[int], spread: bool
) -> list[Tensor | None]:
    """Outputs, and the gradients of the arguments at the positions `wanting`."""
    copies = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
    if spread:  # every second element of a tensor twice as large
        copies = [torch.stack((a, a), -1)[..., 1] if isinstance(a, Tensor) else a for a in copies]
    leaves = [copies[i].requires_grad_() for i in sorted(wanting)]
    outputs = list(tensors(function(*copies)))
    differentiable = [o for o in outputs if o.requires_grad]
    grads = [(3 * o.detach()).cos() for o in differentiable]
    return [*outputs, *torch.autograd.grad(differentiable, leaves, grads, allow_unused=True)]


@blocks
def test_every_pair_equals_its_reference_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In outputs and all gradients, also with one argument that requires a gradient, or strided."""
    _, block, inputs = made(name, ODD, torch.float64, True)
    for tensor in tensors(inputs):
        tensor.requires_grad_(tensor.is_floating_point())
    monkeypatch.setattr(pyramid_attention, "_FEW", 0)  # small pyramids have a form of their own
    with recorded() as found:
        call(block, inputs)
    for function, args in found.values():
        pair = function.pair._replace(min_numel=0)
        by_hand = custom_gradient(function.reference, pair)
        every = {i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad}
        two_samples = 2 * args[0].numel() // 3  # the third is in a chunk of its own
        monkeypatch.setattr(chunks, "CHUNK_NUMEL", two_samples)
        for wanting, spread in ((every, False), (every, True), *(({i}, False) for i in every)):
            wanted = derivatives(function.reference, args, wanting, False)
            assert_close(derivatives(by_hand, args, wanting, spread), wanted)


def test_chunks_cover_every_sample_once() -> None:
    for batch in (0, 1, 2, 7):
        x = torch.arange(2.0 * batch).view(batch, 2, 1).expand(-1, -1, chunks.CHUNK_NUMEL // 6)
        parts = list(chunks.chunks(x))
        assert torch.equal(torch.cat([x[:0], *(x[part] for part, _ in parts)]), x)
        assert all(buffer.shape == x[part].shape for part, buffer in parts)
        assert [len(buffer) for _, buffer in parts] == {0: [], 1: [1], 2: [2], 7: [3, 3, 1]}[batch]
