"""implicit against its formula, channel by channel, in every dtype."""

import math

import pytest
import torch

import attnzoo

from distributions import assert_normal


def line(n: int) -> list[float]:
    return [-1.0] if n == 1 else [-1 + 2 * i / (n - 1) for i in range(n)]


@pytest.mark.parametrize("size", [(1, 1), (4, 7), (5, 1)])
@pytest.mark.parametrize("n", [1, 2, 20])
def test_simple(size: tuple[int, int], n: int) -> None:
    h, w = size
    x = torch.randn(2, 3, h, w, dtype=torch.float64)
    y = attnzoo.build("implicit", 3, n_freqs=n)(x)
    assert y.shape == (2, 4 * n + 3, h, w)
    for j in range(n):
        f = math.exp(-2 + 12 * j / max(n - 1, 1))
        for row, p in enumerate(line(h)):
            for column, q in enumerate(line(w)):
                found = y[1, [2 * j, 2 * j + 1, 2 * (n + j), 2 * (n + j) + 1], row, column]
                wanted = [math.sin(f * p), math.sin(f * q), math.cos(f * p), math.cos(f * q)]
                assert (found - torch.tensor(wanted).double()).abs().max() < 1e-7
    assert torch.equal(y[:, 4 * n :], x)


@pytest.mark.parametrize("colors", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_full(colors: bool, bias: bool) -> None:
    config = {"variant": "full", "color_feats": colors, "learn_bias": bias, "n_freqs": 3}
    block = attnzoo.build("implicit", 3, **config).double()
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    y = block(x)
    m = 5 if colors else 2
    assert y.shape == (2, 6 * m + 3 * colors, 2, 4)
    for row in range(2):
        for column in range(4):
            p = [line(2)[row], line(4)[column], *x[1, :, row, column].tolist()]
            for j in range(3):
                for axis in range(m):
                    at, b = j * m + axis, (0.0, 0.0)
                    if bias:  # read as if it were (n_freqs, m)
                        b = block.biases.flatten(1)[:, at].tolist()
                    angle = math.exp(-2 + 6 * j) * p[axis]
                    assert abs(y[1, at, row, column] - math.sin(angle + b[0])) < 1e-7
                    assert abs(y[1, 3 * m + at, row, column] - math.cos(angle + b[1])) < 1e-7
    y.sum().backward()  # the gradient is zero if no color is used
    assert bool(x.grad.any()) == colors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_rounds_only_the_result(dtype: torch.dtype) -> None:
    x = torch.randn(1, 2, 33, 45)
    found = attnzoo.build("implicit", 2)(x.to(dtype))
    assert found.dtype == dtype
    wanted = attnzoo.build("implicit", 2)(x.double())
    assert (found[:, :80] - wanted[:, :80]).abs().max() <= torch.finfo(dtype).eps


def test_initial_biases_and_defaults() -> None:
    block = attnzoo.build("implicit", 3, variant="full", learn_bias=True, n_freqs=60)
    assert_normal(block.biases, 1.0)
    assert attnzoo.build("implicit", 3, variant="full").n_freqs == 10
    assert attnzoo.build("implicit", 3).n_freqs == 20


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"c": 4, "variant": "full"}, "c=4 must be 3, the colors, with color_feats=True"),
        ({"c": 4, "learn_bias": True}, "learn_bias=True needs variant='full'"),
        ({"c": 4, "color_feats": False}, "color_feats=False needs variant='full'"),
        ({"c": 4, "n_freqs": 0}, "n_freqs=0 must be at least 1"),
    ],
)
def test_refusals(config: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("implicit", **config)
