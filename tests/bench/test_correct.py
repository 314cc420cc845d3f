"""The gate: a block that is wrong as it would be timed has no time, and the reason says what."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo import registry
from attnzoo.bench import correct, job, run
from attnzoo.bench.job import Settings
from attnzoo.bench.row import Failure
from attnzoo.registry import find


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A second one waits for a core of a busy machine at every operator."""
    torch.set_num_threads(1)


def scaled(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 1.01 * y


def nan(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y[:, :-1], y[:, -1:] * float("nan")], 1)


def one_pixel(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y[..., :-1], 1.5 * y[..., -1:]], -1)


def wrong_gradient(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return y + 0.1 * (x - x.detach())


def wrong_parameter_gradient(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    w = next(self.parameters())
    return y + 10 * (w - w.detach()).sum()


def zero_gradient(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return y.detach() + 0 * y


def other_dtype(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return y.bfloat16()


def other_shape(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return y[:, :, :1]


def in_training(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 1.01 * y if self.training else y


def in_inference(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return y if self.training else 1.01 * y


def at_this_size(self: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 1.01 * y if x.shape[-1] == 9 else y


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (scaled, "inference: output 0 is off by 1.0e-02 from the reference form in float64"),
        (nan, "inference: output 0 is absent, misshapen or infinite"),
        (one_pixel, "inference: output 0 is off by"),
        (wrong_gradient, "training: gradient of input 0 is off by"),
        (wrong_parameter_gradient, "training: gradient of the parameter fc1.weight is off by"),
        (zero_gradient, "is off by 1.0e+00"),
        (other_dtype, "output 0 is torch.bfloat16, not torch.float32"),
        (other_shape, "inference: output 0 is absent, misshapen"),
        (in_training, "training: output 0 is off by 1.0e-02"),
        (in_inference, "inference: output 0 is off by 1.0e-02"),
        (at_this_size, "inference: output 0 is off by 1.0e-02"),
    ],
)
def test_a_block_wrong_in_float32_gets_no_time(
    fault: Callable[..., Tensor], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = find("se").cls
    right = block.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = right(self, x)
        return fault(self, x, y) if x.dtype == torch.float32 else y

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(correct.WrongResultError, match="se is not timed: ") as caught:
        attnzoo.measure("se", c=64, size=9, batch=2)
    assert message in str(caught.value)
    row = run.perform(job.example_job("se", {"c": 16}, Settings(size=9, batch=2)))
    assert isinstance(row, Failure)
    assert not any(key.endswith("_ms") for key in row.to_json())


def test_a_missing_gradient_is_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    block = find("se").cls
    right = block.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return right(self, x.detach() if x.dtype == torch.float32 else x)

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(correct.WrongResultError, match="gradient of input 0 is absent"):
        attnzoo.measure("se", c=64, size=9, batch=2)


def test_a_block_wrong_everywhere_fails_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    block = find("se").cls
    right = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x: 1.01 * right(self, x))
    with pytest.raises(
        correct.WrongResultError, match=r"reference case 'base' is off by 1.0e-02 in"
    ):
        attnzoo.measure("se", c=64, size=9, batch=2)


def test_buffers_are_held_too(monkeypatch: pytest.MonkeyPatch) -> None:
    block = find("coordatt").cls
    right = block.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = right(self, x)
        if x.dtype == torch.float32 and self.training:
            next(b for b in self.buffers() if b.is_floating_point()).data.add_(0.1)
        return y

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(correct.WrongResultError, match=r"training: buffer .* is off by"):
        attnzoo.measure("coordatt", c=64, size=9, batch=2)


def test_each_dtype_is_held_to_its_own_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    block = find("se").cls
    right = block.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return right(self, x) * (1.2 if x.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(block, "forward", forward)
    assert attnzoo.measure("se", c=64, size=9, batch=2, min_time=0.01).dtype == "float32"
    with pytest.raises(correct.WrongResultError, match="output 0 is off by"):
        attnzoo.measure("se", c=64, size=9, batch=2, dtype="bfloat16")


def test_autocast_is_checked_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    block = find("se").cls
    right = block.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return right(self, x) * (1.2 if torch.is_autocast_enabled("cpu") else 1)

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(correct.WrongResultError, match=r"output 0 is off by 2.0e-01"):
        attnzoo.measure("se", c=64, size=9, batch=2, dtype="bfloat16", autocast=True)


def test_what_compilation_made_is_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the compiler, that is wrong."""

    def compiler(block: nn.Module, **options: Any) -> Callable[..., Any]:
        assert options["dynamic"] is False
        assert options["fullgraph"] is True
        return lambda *args: 1.01 * block(*args)

    monkeypatch.setattr(torch, "compile", compiler)
    with pytest.raises(correct.WrongResultError, match=r"inference: output 0 is off by 1.0e-02"):
        attnzoo.measure("se", c=64, size=9, batch=2, mode="compiled")


@pytest.mark.slow
def test_a_block_wrong_only_when_compiled_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    row = attnzoo.measure("se", c=64, size=9, batch=2, mode="compiled", min_time=0.01)
    assert row.mode == "compiled"
    assert row.compile_seconds is not None
    assert 1e3 * row.compile_seconds > row.latency_training.best
    block = find("se").cls
    right = block.forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return right(self, x) * (1.01 if torch.compiler.is_compiling() else 1)

    monkeypatch.setattr(block, "forward", forward)
    with pytest.raises(correct.WrongResultError, match=r"inference: output 0 is off by 1.0e-02"):
        attnzoo.measure("se", c=64, size=9, batch=2, mode="compiled")


def test_dropout_draws_the_same_numbers_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        attnzoo.measure("ltae", c=16, heads=2, size=4, batch=2, min_time=0.01).config["dropout"]
        == 0.2
    )
    monkeypatch.setattr(torch, "compile", lambda block, **options: block)
    with pytest.raises(
        correct.WrongResultError, match=r"draws random numbers.*build it with dropout=0"
    ):
        attnzoo.measure("ltae", c=16, heads=2, size=4, batch=2, mode="compiled")


class Cube(torch.autograd.Function):
    """Its backward pass is off by 2 %."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 3.06 * x**2


class Gate(nn.Module):
    """A user's block: no reference vectors stand for it."""

    def __init__(self, c: int = 6, kind: str = "right") -> None:
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.ones(c, 1, 1))
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y = x * (self.scale * x.mean((2, 3), keepdim=True)).sigmoid()
        if self.kind == "missing":
            return x * (self.scale.detach() * x).sigmoid()
        if self.kind == "zero":
            return y.detach() + 0 * y
        return Cube.apply(y) if self.kind == "wrong" else y.relu()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("wrong", "the gradient of input 0 disagrees with finite differences"),
        ("missing", "the gradient of parameter scale disagrees with finite differences"),
        ("zero", "the gradient of input 0 disagrees with finite differences"),
        ("right", ""),
    ],
)
def test_a_users_gradients_are_slopes(
    kind: str, message: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_blocks", dict(registry._catalogue()))
    attnzoo.register("gate", layout="image", example={"c": 6})(Gate)
    if not message:
        assert attnzoo.measure(
            "gate", kind=kind, dtype=dtype, size=6, batch=2, min_time=0.01
        ).checked_error
        return
    with pytest.raises(correct.WrongResultError, match=message):
        attnzoo.measure("gate", kind=kind, dtype=dtype, size=6, batch=2)


class Faulty(nn.Module):
    """Right in the check, and then not."""

    def __init__(self, c: int = 6, fault: str = "none", calls: int = 12) -> None:
        super().__init__()
        self.fault, self.left = fault, calls
        self.scale = nn.Parameter(torch.ones(c, 1, 1))
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor | None:
        y = x * self.scale
        self.left -= x.dtype == torch.float32  # the reference in float64 stays right
        if self.fault == "none":
            return None
        if self.fault == "nan" and self.left < 0:
            return y * float("nan")
        if self.fault == "drift" and self.left < 0 and not self.training:
            return 1.01 * y
        if self.fault == "leak" or (self.fault == "leak in training" and self.training):
            self.kept.append(y.detach())
        return y


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("none", "its output None has no tensor"),
        ("nan", "output 0 is absent, misshapen or infinite"),
        ("drift", "output 0 is off by 1.0e-02"),
        ("leak", "bytes more with every call"),
        ("leak in training", "bytes more with every training step"),
    ],
)
def test_faults_that_come_after_the_check(
    fault: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_blocks", dict(registry._catalogue()))
    attnzoo.register("faulty", layout="image", example={"c": 6})(Faulty)
    with pytest.raises(correct.WrongResultError, match=message):
        attnzoo.measure("faulty", fault=fault, calls=12, size=6, batch=2, min_time=0.01)


class Kink(nn.Module):
    """A unit at the kink of its activation, which float32 puts on the other side."""

    def __init__(self, c: int = 64) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = x * self.scale
        third = torch.tensor(1 / 3, dtype=torch.float64).to(z)
        at = (z - z.detach()) + (third - 0.3333333432674407958984375 + 4e-8)
        return z + 30 * at.relu()


def test_a_kink_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 is above the kink and float32 below it: right, and off by all of a gradient."""
    monkeypatch.setattr(registry, "_blocks", dict(registry._catalogue()))
    attnzoo.register("kink", layout="image", example={"c": 64})(Kink)
    monkeypatch.setattr(correct.gradcheck, "LIMIT", float("inf"))
    assert attnzoo.measure("kink", c=8, size=4, batch=2, min_time=0.01).checked_error < 1e-3
