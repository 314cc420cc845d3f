"""adaptive_conv, and the window functions that it and the upsamplers use."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnzoo import adaptive_conv
from attnzoo.autograd import reference_forms, windows
from attnzoo.ops.windows import fine_map
from attnzoo.reference.cases import FOLDER
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.work import saved_bytes

SHAPE = {"B": 2, "G": 2, "D": 7, "S": 4, "H": 11, "W": 9}  # large enough for the passes by hand


def by_loops(x: Tensor, filters: Tensor) -> Tensor:
    _, h, w, k, _ = filters.shape
    out = torch.zeros(*x.shape[:2], h, w, dtype=x.dtype)
    for row in range(h):
        for column in range(w):
            window = x[:, :, row : row + k, column : column + k]
            out[:, :, row, column] = (window * filters[:, None, row, column]).sum((2, 3))
    return out


@pytest.mark.parametrize("case", ["k3", "k7"])
@pytest.mark.parametrize("by_hand", [True, False])
def test_the_authors_numbers(case: str, by_hand: bool) -> None:
    from safetensors.torch import load_file

    file = load_file(FOLDER / f"adaptive_conv__{case}.safetensors")
    x = file["input.x"].requires_grad_()
    filters = file["input.filters"].requires_grad_()
    if by_hand:
        weights = filters.permute(0, 3, 4, 1, 2)[:, None, :, :, None]
        with torch.no_grad():
            y, _ = windows._sum(x[:, None], weights)
            grad = file["grad_output.0"][:, None, :, None]
            gx, _ = windows._spread(grad, weights)
            gf, _ = windows._dots(grad, x[:, None], filters.shape[-1])
        found = [y[:, 0, :, 0], gx[:, 0], gf[:, 0, :, :, 0].permute(0, 3, 4, 1, 2)]
    else:
        y = adaptive_conv(x, filters)
        found = [y, *torch.autograd.grad(y, (x, filters), file["grad_output.0"])]
    wanted = [file["output.0"], file["grad_input.x"], file["grad_input.filters"]]
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max()


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (31, 33)])
def test_any_size_and_kernel(k: int, size: tuple[int, int]) -> None:
    h, w = size
    x = torch.randn(2, 9, h + k - 1, w + k - 1, dtype=torch.float64)
    filters = torch.randn(2, h, w, k, k, dtype=torch.float64)
    assert_close(adaptive_conv(x, filters), by_loops(x, filters))
    assert adaptive_conv(x[:0], filters[:0]).shape == (0, 9, h, w)


def arguments(k: int) -> dict[str, tuple[Any, ...]]:
    b, g, d, s, h, w = SHAPE.values()
    x = torch.randn(b, g, d, h + k - 1, w + k - 1, dtype=torch.float64)
    weights = torch.randn(b, g, k, k, s, h, w, dtype=torch.float64)
    y = torch.randn(b, g, d, s, h, w, dtype=torch.float64)
    for tensor in (x, weights, y):
        tensor.requires_grad_()
    return {
        "window_sum": (x.repeat(1, 1, 3, 1, 1), weights),
        "window_dots": (y.repeat(1, 1, 2, 1, 1, 1), x.repeat(1, 1, 2, 1, 1), k),
        "window_spread": (y.repeat(1, 1, 2, 1, 1, 1), weights),
    }


@pytest.mark.parametrize("name", ["window_sum", "window_dots", "window_spread"])
@pytest.mark.parametrize("k", [2, 3])
def test_hand_written_passes_equal_the_reference_form_to_second_order(name: str, k: int) -> None:
    function: Callable[..., Tensor] = getattr(windows, name)
    args = [a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in arguments(k)[name]]
    assert args[0].numel() >= windows._MIN_NUMEL
    leaves = [a for a in args if isinstance(a, Tensor)]

    def orders() -> list[Tensor]:
        y = function(*args)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        bend = sum((g * torch.linspace(0, 1, g.numel()).view_as(g)).sum() for g in first)
        return [y, *first, *torch.autograd.grad(bend, leaves)]

    by_hand = orders()
    with reference_forms():
        assert_close(by_hand, orders())


@pytest.mark.parametrize("name", ["window_sum", "window_dots", "window_spread"])
def test_chunks_of_channels_give_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function: Callable[..., Tensor] = getattr(windows, name)
    args = [a.detach() if isinstance(a, Tensor) else a for a in arguments(3)[name]]
    monkeypatch.setattr(windows, "_CHUNK_NUMEL", args[0].numel() // 2)  # uneven for odd channels
    by_hand = function(*args)
    with reference_forms():
        assert_close(by_hand, function(*args))


def test_second_derivatives_use_the_hand_written_passes() -> None:
    """The reference form would keep k x k shifted copies of the map."""
    x, filters = (a.detach().requires_grad_() for a in arguments(3)["window_sum"])
    grad = torch.ones_like(windows.window_sum(x, filters), requires_grad=True)
    (first,) = torch.autograd.grad(windows.window_sum(x, filters), x, grad, create_graph=True)
    assert "_Function" in first.grad_fn.name()


def test_only_needed_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("window_dots", "window_spread"):
        kept = getattr(windows, name)
        monkeypatch.setattr(windows, name, lambda *a, n=name, f=kept: (calls.append(n), f(*a))[1])
    x, filters = torch.randn(1, 64, 22, 22), torch.randn(1, 20, 20, 3, 3, requires_grad=True)
    adaptive_conv(x, filters).sum().backward()
    assert calls == ["window_dots"]


def test_fine_map_is_pixel_shuffle() -> None:
    y = torch.randn(2, 5, 9, 3, 4)
    assert torch.equal(fine_map(y, 3), torch.nn.functional.pixel_shuffle(y.flatten(1, 2), 3))


def test_autograd_saves_only_the_arguments() -> None:
    class Convolved(torch.nn.Module):
        def forward(self, x: Tensor, filters: Tensor) -> Tensor:
            return adaptive_conv(x, filters)

    x = torch.randn(1, 16, 38, 38, requires_grad=True)
    filters = torch.randn(1, 32, 32, 7, 7, requires_grad=True)
    assert saved_bytes(Convolved(), {"x": x, "filters": filters}) == 0


PEAK = """
import resource, torch
from attnzoo import adaptive_conv
torch.set_num_threads(1)
x = torch.randn(1, 384, 134, 134, requires_grad=True)
filters = torch.randn(1, 128, 128, 7, 7, requires_grad=True)
grad = torch.randn(1, 384, 128, 128)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
adaptive_conv(x, filters).backward(grad)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_peak_memory_of_a_realistic_training_step() -> None:
    """The output and both gradients take 78 MB; all 49 shifted copies would take 1.2 GB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 200 * 2**20


def test_half_precision_is_summed_in_float32() -> None:
    x, filters = torch.full((1, 1, 8, 8), 300.0), torch.ones(1, 2, 2, 7, 7)
    filters[..., 3:, :] = -1
    found = adaptive_conv(x.half(), 16 * filters.half())  # partial sums beyond float16
    assert found.dtype == torch.float16
    assert_close(found, adaptive_conv(x, 16 * filters).half())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 3, 7, 8)}, r"x has shape \(2, 3, 7, 8\).*must be \(2, 3, 8, 8\).*2"),
        ({"x": torch.zeros(1, 3, 8, 8)}, r"must be \(2, 3, 8, 8\)"),
        ({"x": torch.zeros(3, 8, 8)}, r"x has shape \(3, 8, 8\)"),
        ({"filters": torch.zeros(2, 6, 6, 3, 5)}, r"filters has shape .* must be \(B, H, W, k, k"),
        ({"filters": torch.zeros(2, 6, 6, 9)}, "filters has shape"),
        ({"filters": torch.zeros(2, 6, 6, 0, 0)}, "no empty axis"),
        ({"filters": torch.zeros(2, 6, 6, 3, 3).double()}, r"filters is torch.float64, x torch.f"),
        ({"filters": torch.zeros(2, 6, 6, 3, 3, device="meta")}, "filters is on meta, x on cpu"),
        ({"filters": None}, "filters must be a Tensor"),
    ],
)
def test_refusals(change: dict[str, Any], words: str) -> None:
    good = {"x": torch.zeros(2, 3, 8, 8), "filters": torch.zeros(2, 6, 6, 3, 3)}
    assert adaptive_conv(**good).shape == (2, 3, 6, 6)
    with pytest.raises((ValueError, TypeError), match=words):
        adaptive_conv(**{**good, **change})
