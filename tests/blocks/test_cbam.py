"""CBAM against the authors' formulas: poolings, ties, large inputs, counts and errors."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from formulas import max_mean_gate
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.testing.closeness import assert_close

from contract import assert_large_sums_fit, assert_steps_equal, made
from distributions import assert_default

POOLINGS = {
    "avg": lambda x: F.avg_pool2d(x, x.shape[2:]),
    "max": lambda x: F.max_pool2d(x, x.shape[2:]),
    "lp": lambda x: F.lp_pool2d(x, 2, x.shape[2:]),
    "lse": lambda x: x.flatten(2).logsumexp(2),
}


def authors(block: nn.Module, x: Tensor) -> Tensor:
    logits: Any = 0
    for kind in block.pool_types:
        z = POOLINGS[kind](x).flatten(1)
        logits = logits + block.fc2(F.relu(block.fc1(z)))
    u = x * torch.sigmoid(logits)[:, :, None, None]
    return u if block.spatial is None else max_mean_gate(u, block.spatial)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "config",
    [
        {"c": 20},
        {"c": 7, "reduction": 3, "kernel_size": 3},
        {"c": 16, "reduction": 1, "kernel_size": 1, "pool_types": ["max"]},
        {"c": 16, "reduction": 4, "spatial": False, "pool_types": ["lse", "lp"]},
        {"c": 16, "pool_types": ["lp", "avg", "max", "lse"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (13, 11), (57, 64)], ids=str)
def test_equals_the_authors_formulas(
    config: dict[str, Any], size: tuple[int, int], train: bool
) -> None:
    extent = attnzoo.InputSize(batch=3, height=size[0], width=size[1])
    _, block, inputs = made("cbam", extent, torch.float64, train, **config)
    assert_steps_equal(block, inputs, lambda leaves: authors(block, leaves["x"]))


@pytest.mark.parametrize("plain", [False, True], ids=["by hand", "plain"])
def test_one_index_gets_the_gradient_of_a_tie(plain: bool) -> None:
    extent = attnzoo.InputSize(height=57, width=80)
    _, block, inputs = made("cbam", extent, torch.float64, c=16, reduction=2)
    x = inputs["x"].round().relu()  # many ties, whole channels and pixels of zeros among them
    x[:, 3], x[:, :, 2] = 0, 0
    with reference_forms() if plain else nullcontext():
        assert_steps_equal(block, {"x": x}, lambda leaves: authors(block, leaves["x"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_do_not_overflow_in_half_precision(dtype: torch.dtype) -> None:
    assert_large_sums_fit("cbam", dtype)


def test_maps_of_half_a_megabyte_take_the_hand_written_passes() -> None:
    block = attnzoo.build("cbam", c=8, reduction=2)
    for width, by_hand in ((128, True), (127, False)):
        y = block(torch.randn(1, 8, 128, width))
        assert (type(y.grad_fn).__name__ == "_FunctionBackward") == by_hand


def test_refusals() -> None:
    with pytest.raises(ValueError, match="reduction=16 leaves no channel of c=8"):
        attnzoo.build("cbam", c=8)
    with pytest.raises(ValueError, match="kernel_size=4 must be odd; the nearest are 3, 5"):
        attnzoo.build("cbam", c=32, kernel_size=4)
    with pytest.raises(ValueError, match=r"pool_types=\(\) must be non-empty"):
        attnzoo.build("cbam", c=32, pool_types=[])
    with pytest.raises(ValueError, match="did you mean 'max'"):
        attnzoo.build("cbam", c=32, pool_types=["avg", "maxi"])
    block = attnzoo.build("cbam", c=32)
    with pytest.raises(ValueError, match="BatchNorm 1 value per channel"):
        block(torch.randn(1, 32, 1, 1))
    assert block(torch.randn(1, 32, 1, 2)).isfinite().all()
    assert block.eval()(torch.randn(1, 32, 1, 1)).isfinite().all()
    with pytest.raises(ValueError, match="built for c=32"):
        block(torch.randn(1, 16, 4, 4))


def test_a_pooling_named_twice_is_added_twice() -> None:
    extent = attnzoo.InputSize(batch=3, height=5, width=6)
    config = {"c": 16, "pool_types": ["max", "avg", "max"]}
    _, block, inputs = made("cbam", extent, torch.float64, True, **config)
    assert_steps_equal(block, inputs, lambda leaves: authors(block, leaves["x"]))


def test_the_log_sum_exp_of_large_values() -> None:
    config = {"c": 16, "pool_types": ["lse"], "spatial": False}
    _, block, inputs = made("cbam", attnzoo.InputSize(height=5, width=6), torch.float64, **config)
    x = inputs["x"] + 1000  # its exponential overflows in every dtype
    top = x.flatten(2).max(2, keepdim=True).values
    lse = (x.flatten(2) - top).exp().sum(2).log() + top.squeeze(2)
    gate = block.fc2(block.fc1(lse).relu()).sigmoid()
    assert_close(block(x), x * gate[:, :, None, None])


def test_layers_start_as_torchs_own() -> None:
    assert_default([attnzoo.build("cbam", 64, reduction=4) for _ in range(8)])
    assert attnzoo.build("cbam", 64).spatial.bn.momentum == 0.01


@pytest.mark.parametrize(
    ("config", "macs"),
    [({}, 2 * 148 + 2 * 49 * 143), ({"spatial": False, "pool_types": ["lp"]}, 148)],
)
def test_multiply_adds(config: dict[str, Any], macs: int) -> None:
    block = attnzoo.build("cbam", 37, **config)
    assert block.macs(attnzoo.InputSize(3, 2, 13, 11)) == macs
