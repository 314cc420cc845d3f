"""Coordinate attention against its equation, in every form of `c_out` and either naming."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.testing.closeness import assert_close

from distributions import assert_default

FORMS = [
    {"c": 40, "reduction": 32},
    {"c": 40, "reduction": 4},
    {"c": 12, "c_out": 12},
    {"c": 12, "c_out": 1},
    {"c": 1},
    {"c": 1, "c_out": 5},
    {"c": 3, "reduction": 64},
]
SIZES = [(2, 9, 7), (1, 1, 1), (3, 1, 12), (2, 13, 1), (1, 32, 32)]


def equation(x: Tensor, w: dict[str, Tensor], train: bool) -> Tensor:
    """The authors' steps one by one, on one strip of rows and columns per image."""
    h = x.shape[2]
    strips = torch.cat([x.sum(3) / x.shape[3], x.sum(2) / h], 2)
    t = torch.einsum("mc,bcl->bml", w["conv1.weight"].flatten(1), strips)
    t = t + w["conv1.bias"][:, None]
    if train:
        mean, var = t.mean((0, 2)), t.var((0, 2), correction=0)
    else:
        mean, var = w["bn1.running_mean"], w["bn1.running_var"]
    t = (t - mean[:, None]) / (var[:, None] + 1e-5).sqrt()
    t = t * w["bn1.weight"][:, None] + w["bn1.bias"][:, None]
    t = t * (t + 3).clamp(0, 6) / 6

    def gate(name: str, part: Tensor) -> Tensor:
        scores = torch.einsum("om,bml->bol", w[f"{name}.weight"].flatten(1), part)
        return 1 / (1 + (-scores - w[f"{name}.bias"][:, None]).exp())

    return x * gate("conv_w", t[:, :, h:])[:, :, None] * gate("conv_h", t[:, :, :h])[..., None]


def randomized(**config: Any) -> nn.Module:
    block = attnzoo.build("coordatt", **config, dtype=torch.float64)
    for name, tensor in block.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if "running_var" in name else tensor.normal_()
    return block


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("config", FORMS, ids=str)
def test_equals_the_equation(config: dict[str, int], size: tuple[int, ...], train: bool) -> None:
    block = randomized(**config).train(train)
    weights = {k: v.clone() for k, v in block.state_dict().items()}
    parameters = dict(block.named_parameters())
    b, h, w = size
    x = torch.randn(b, config["c"], h, w, dtype=torch.float64, requires_grad=True)
    wanted = equation(x, {**weights, **parameters}, train)
    grad = torch.randn_like(wanted)
    wanted_grads = torch.autograd.grad(wanted, [x, *parameters.values()], grad)
    found = block(x)
    assert found.shape == (b, max(config["c"], config.get("c_out", 1)), h, w)
    found_grads = torch.autograd.grad(found, [x, *parameters.values()], grad)
    assert_close([found, *found_grads], [wanted, *wanted_grads])
    with reference_forms():
        assert_close(block(x), wanted)


def test_hidden_width_has_a_floor_of_eight() -> None:
    widths = {c: attnzoo.build("coordatt", c=c).conv1.out_channels for c in (1, 64, 288, 320)}
    assert widths == {1: 8, 64: 8, 288: 9, 320: 10}


def test_the_names_of_the_released_network_load() -> None:
    block = randomized(c=24)
    block.float()
    theirs = {
        f"features.3.ca.{key}".replace("conv_h", "conv2").replace("conv_w", "conv3"): value
        for key, value in block.state_dict().items()
    }
    twin = attnzoo.from_upstream("coordatt", {**theirs, "classifier.bias": torch.ones(3)}, c=24)
    x = torch.randn(2, 24, 5, 6)
    assert torch.equal(twin.eval()(x), block.eval()(x))


@pytest.mark.parametrize("c_out", [2, 11, 13, 24])
def test_a_c_out_that_cannot_be_broadcast_is_refused(c_out: int) -> None:
    with pytest.raises(ValueError, match=rf"c_out={c_out} .* c=12 channels; take 12 or 1"):
        attnzoo.build("coordatt", c=12, c_out=c_out)


@pytest.mark.parametrize("config", [{"c": 0}, {"c": 8, "reduction": 0}, {"c": 8, "c_out": 0}])
def test_values_below_one_are_refused(config: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="=0 must be at least 1"):
        attnzoo.build("coordatt", **config)


def test_one_value_of_a_train_mode_batch_norm() -> None:
    block = attnzoo.build("coordatt", c=8)
    assert block(torch.randn(1, 8, 1, 1)).isfinite().all()  # one row and one column: two values
    with pytest.raises(ValueError, match="BatchNorm"):
        block(torch.randn(0, 8, 4, 4))


def test_strip_sums_do_not_overflow_in_half_precision() -> None:
    block = attnzoo.build("coordatt", c=8).half().eval()
    x = torch.full((1, 8, 40, 40), 6e3, dtype=torch.float16)
    assert block(x).isfinite().all()


def test_layers_start_as_torchs_own() -> None:
    assert_default([attnzoo.build("coordatt", 64) for _ in range(8)])


@pytest.mark.parametrize(("c_out", "macs"), [(None, 24 * 9 * 74), (1, 24 * 9 * 38)])
def test_multiply_adds(c_out: int | None, macs: int) -> None:
    block = attnzoo.build("coordatt", 37, reduction=4, c_out=c_out)
    assert block.macs(attnzoo.InputSize(3, 2, 13, 11)) == macs
