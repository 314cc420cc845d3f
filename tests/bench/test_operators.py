"""Operators one by one: products in every form, elementwise work by hand, and the uncounted."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.bench import job, run
from attnzoo.bench.job import Settings
from attnzoo.bench.row import Failure
from attnzoo.cost import counter, operators
from attnzoo.registry import find
from attnzoo.testing.work import work


class Function(nn.Module):
    """A module of one function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def work_of(function: Any, *shapes: tuple[int, ...]) -> operators.Work:
    inputs = {f"x{i}": torch.empty(shape, device="meta") for i, shape in enumerate(shapes)}
    return work(Function(function), inputs)


@torch.library.custom_op("attnzoo_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return 2 * x


@doubled.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


doubled.register_autograd(lambda context, grad: 2 * grad)


def test_an_operator_nobody_counts_is_an_error() -> None:
    with pytest.raises(operators.UncountedOperatorError, match="'attnzoo_tests::doubled'"):
        work_of(doubled, (2, 3))
    with pytest.raises(operators.UncountedOperatorError, match="'aten::_trilinear'"):
        work_of(nn.Bilinear(5, 4, 3, device="meta"), (2, 5), (2, 4))


def test_a_network_of_strangers_is_counted_as_far_as_it_is_known() -> None:
    x = torch.ones(2, 3)
    with counter.WorkCounter(strict=False) as found:
        doubled(x) @ x.mT
    assert found.work == (2 * 3 * 2, 0)
    assert found.uncounted == {"attnzoo_tests::doubled"}
    rnn = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True).eval()
    with torch.no_grad():
        assert counter.count(lambda: rnn(torch.ones(3, 5, 8)), strict=False).macs == (
            3 * 5 * 2 * 4 * 6 * (8 + 6 + 12 + 6)
        )


def test_higher_order_operators_are_not_passed_over() -> None:
    def conditional(x: Tensor) -> Any:
        branches = (lambda y: (y @ y,), lambda y: (y,))
        return torch.ops.higher_order.cond(torch.ones(()) > 0, *branches, (x[0],))

    # Older torch refuses by itself: no mode takes such operators there.
    with pytest.raises((operators.UncountedOperatorError, NotImplementedError), match="cond"):
        work(Function(conditional), {"x": torch.ones(1, 3, 3)})


def test_an_uncounted_operator_fails_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    block = find("se").cls
    right = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x: doubled(right(self, x)) / 2)
    row = run.perform(job.example_job("se", {}, Settings(size=4, min_time=0.01)))
    assert isinstance(row, Failure)
    assert (
        "UncountedOperatorError: operator attnzoo_tests.doubled.default has no cost formula"
        in row.error
    )


def test_an_operator_of_ones_own_is_counted_as_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_registered", {})

    @operators.register("attnzoo_tests::doubled")
    def cost(x: Tensor, *, out: Tensor) -> operators.Work:
        return operators.Work(macs=7, elementwise=out.numel())

    assert work_of(lambda x: doubled(x).relu(), (2, 3)) == (7, 6)
    with pytest.raises(ValueError, match="'attnzoo_tests::doubled' must be an operator without"):
        operators.register("attnzoo_tests::doubled")


@pytest.mark.parametrize("name", ["aten::mm", "aten::relu", "aten::cumsum", "aten::view"])
def test_what_is_counted_cannot_be_counted_otherwise(name: str) -> None:
    with pytest.raises(ValueError, match="without a cost formula"):
        operators.register(name)


def test_a_name_without_a_namespace_is_refused() -> None:
    with pytest.raises(ValueError, match="name='scan' must be 'namespace::operator'"):
        operators.register("scan")


def test_torchs_own_registry_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "flop_registry", dict(operators.flop_registry))
    packet = torch.ops.attnzoo_tests.doubled
    operators.flop_registry[packet] = lambda x, out_val=None: 2 * x.numel()
    assert work_of(doubled, (2, 3)) == (3, 0)


ATTENTION = 2 * 3 * 5 * 5 * 4  # queries with keys and weights with values, 3 heads of width 4
LSTM_MACS = 5 * 4 * 6 * (8 + 6)


@pytest.mark.parametrize(
    "function, shapes, macs",
    [
        (F.scaled_dot_product_attention, [(2, 3, 5, 4)] * 3, ATTENTION),
        (lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, [(2, 3, 5, 4)] * 3, ATTENTION),
        (lambda x, a, b: torch.baddbmm(x, a, b), [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 3 * 4 * 5),
        (lambda a, b: torch.einsum("bhqd,bkhd->bhqk", a, b), [(2, 3, 5, 4), (2, 6, 3, 4)], 360),
        (lambda a: a[0] @ a[0, 0], [(2, 5, 5)], 25),
        (lambda a: torch.dot(a[0], a[0]), [(2, 5)], 5),
        (lambda a: torch.outer(a[0], a[0]).addr(a[0], a[0]), [(2, 5)], 25),
        (nn.ConvTranspose2d(4, 6, 2, stride=2, device="meta"), [(2, 4, 5, 5)], 4 * 6 * 4 * 25),
        (nn.LSTM(8, 6, batch_first=True, device="meta"), [(2, 5, 8)], LSTM_MACS),
        (
            nn.MultiheadAttention(12, 3, batch_first=True, device="meta"),
            [(2, 5, 12)] * 3,
            4 * 5 * 12**2 + ATTENTION,
        ),
    ],
)  # fmt: skip
def test_products_are_counted_in_every_form(
    function: Any, shapes: list[tuple[int, ...]], macs: int
) -> None:
    assert work_of(function, *shapes).macs == macs


def test_attention_in_one_operator_counts_as_much() -> None:
    q, v = torch.empty(2, 3, 5, 4, device="meta"), torch.empty(2, 3, 5, 8, device="meta")
    fused = operators.formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default)
    assert fused is not None
    scores = 2 * 3 * 5 * 5
    assert fused.work(q, q, v, out=(v, None)) == (scores * (4 + 8), 6 * scores)


def test_inference_mode_hides_nothing() -> None:
    def inside(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return F.linear(x, x[0]).softmax(-1)

    assert work_of(inside, (2, 4, 3)) == (4 * 4 * 3, 5 * 4 * 4)


X = (2, 4, 6, 8)
ONE = 4 * 6 * 8  # elements of a sample


@pytest.mark.parametrize(
    "function, elementwise",
    [
        (torch.sigmoid, ONE),
        (lambda x: x.clone().mul_(2).relu_(), 2 * ONE),
        (lambda x: x * x.mean((2, 3), keepdim=True), 2 * ONE),
        (lambda x: x.amax(1), ONE),
        (lambda x: x.max(1).values, ONE),
        (lambda x: x.cumsum(1), ONE),
        (lambda x: x.softmax(1), 5 * ONE),
        (lambda x: x.var(1), 4 * ONE),
        (lambda x: torch.linalg.vector_norm(x, dim=1), 2 * ONE),
        (nn.LayerNorm(8, device="meta"), 7 * ONE),
        (nn.LayerNorm(8, elementwise_affine=False), 5 * ONE),
        (nn.GroupNorm(2, 4, device="meta"), 7 * ONE),
        (nn.BatchNorm2d(4, device="meta"), 4 * ONE),
        (nn.BatchNorm2d(4, affine=False, device="meta"), 2 * ONE),
        (nn.BatchNorm2d(4, affine=False, track_running_stats=False), 5 * ONE),
        (nn.Hardswish(), ONE),
        (nn.MaxPool2d(2), ONE),
        (nn.AvgPool2d(2, stride=1), 4 * (5 * 7) * 4),
        (lambda x: F.avg_pool2d(x, [2], [2]), ONE),
        (lambda x: F.max_pool3d(x, [2], [2]), ONE),
        (nn.AdaptiveAvgPool2d(2), ONE),
        (nn.AdaptiveAvgPool2d(4), 4 * (2 + 2 + 2 + 2) * 8),
        (nn.Upsample(scale_factor=2), 0),
        (nn.Upsample(scale_factor=2, mode="bilinear"), 7 * 4 * ONE),
        (lambda x: torch.cat((x.mT, x.mT)).double().contiguous()[:, ::2].flip(1), 0),
        (
            lambda x: x.new_zeros(3).index_add(0, x.new_ones(5, dtype=torch.int64), x[0, 0, 0, :5]),
            5,
        ),
        (lambda x: torch.fft.rfft(x), int(2.5 * ONE * 3)),
        (lambda x: torch.ones(5, 5, device="meta").tril() @ x[0, :, :5, :1], 0),
    ],
)
def test_elementwise_work_by_hand(function: Any, elementwise: int) -> None:
    assert work_of(function, X).elementwise == elementwise


def test_a_single_number_is_an_input_too() -> None:
    assert work_of(lambda x, scale: x * scale, (5, 3), ()) == (0, 3)
