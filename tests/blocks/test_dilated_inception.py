"""Dilated inception: the authors' formula, causality, short series, both implementations."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import attnzoo
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters
from attnzoo.testing.work import work

from contract import made
from distributions import assert_uniform

CONFIGS = [
    {"kernels": kernels, "dilation": dilation, "gated": gated, "padding": padding}
    for kernels, dilation, gated, padding in itertools.product(
        [(2, 3, 6, 7), (3,), (7, 2)], [1, 3], [False, True], ["causal", "valid"]
    )
]


def written_out(block: torch.nn.Module, x: Tensor) -> Tensor:
    """Branch by branch as the authors do: unpadded, cut to the last steps of the shortest."""
    reach = (max(block.kernels) - 1) * block.dilation

    def inception(prefix: str) -> Tensor:
        h = x.flatten(0, -3).mT
        if block.padding == "causal":
            h = F.pad(h, (reach, 0))
        maps = [
            F.conv1d(
                h,
                block.get_parameter(f"{prefix}tconv.{i}.weight"),
                block.get_parameter(f"{prefix}tconv.{i}.bias"),
                dilation=block.dilation,
            )
            for i in range(len(block.kernels))
        ]
        steps = min(m.shape[-1] for m in maps)
        return torch.cat([m[..., -steps:] for m in maps], 1).mT

    if not block.gated:
        y = inception("")
    else:
        y = inception("filter_conv.").tanh() * inception("gate_conv.").sigmoid()
    return y.reshape(*x.shape[:-2], *y.shape[1:])


def gradients(y: Tensor, x: Tensor, block: torch.nn.Module) -> list[Tensor]:
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *block.parameters()])]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("as_one", [True, False])
def test_equals_the_branches_written_out(config: dict, as_one: bool) -> None:
    block = attnzoo.build("dilated_inception", 5, c_out=8, dtype=torch.float64, **config)
    randomize_parameters(block)
    block.as_one = as_one
    x = torch.randn(2, 3, 20, 5, dtype=torch.float64, requires_grad=True)
    found, wanted = (gradients(f, x, block) for f in (block(x), written_out(block, x)))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("c, joined", [(32, True), (256, False)])
@pytest.mark.parametrize("config", [{}, {"gated": True}, {"padding": "valid", "dilation": 2}])
def test_wide_blocks_run_separate_convolutions(c: int, joined: bool, config: dict) -> None:
    """The four kernels have 18 taps; in one convolution, each of the branches runs 7."""
    size = attnzoo.InputSize(batch=2, steps=19)
    _, block, inputs = made("dilated_inception", size, c=c, **config)
    assert block.as_one is joined
    products = (19 - 12 * ("padding" in config)) * c * (c // 4) * (1 + ("gated" in config))
    assert block.macs(size) == products * 18
    assert work(block, inputs).macs == products * (28 if joined else 18)


def test_initial_distributions() -> None:
    """torch's default everywhere, as in the authors' modules."""
    block = attnzoo.build("dilated_inception", 64, c_out=128, gated=True)
    alone = attnzoo.build("dilated_inception", 64, c_out=128)
    for branches in (alone.tconv, block.filter_conv.tconv, block.gate_conv.tconv):
        for kernel, conv in zip((2, 3, 6, 7), branches, strict=True):
            assert_uniform(conv.weight.detach(), (64 * kernel) ** -0.5)
            assert_uniform(conv.bias.detach(), (64 * kernel) ** -0.5)


def test_parameters_are_those_the_paper_counts() -> None:
    assert attnzoo.registry.find("dilated_inception").closed_form(c=32).params == 4640


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_no_output_depends_on_a_later_step(config: dict) -> None:
    block = attnzoo.build("dilated_inception", 4, dtype=torch.float64, **{**config, "c_out": 8})
    randomize_parameters(block)
    x = torch.randn(2, 21, 4, dtype=torch.float64)
    before = block(x)
    offset = x.shape[1] - before.shape[1]  # output j is that of step j + offset
    for t in range(x.shape[1]):
        moved = x.clone()
        moved[:, t] += 1
        changed = (block(moved) - before).abs().amax((0, 2)) > 0
        assert not changed[: max(t - offset, 0)].any()
        if t >= offset:
            assert changed[t - offset]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_causal_padding_accepts_series_shorter_than_the_kernels(steps: int) -> None:
    _, block, _ = made("dilated_inception", dtype=torch.float64, c=4, dilation=2)
    x = torch.randn(3, steps, 4, dtype=torch.float64)
    assert block(x).shape == (3, steps, 4)
    assert_close(block(x), written_out(block, x))


def test_valid_padding_refuses_a_short_series() -> None:
    block = attnzoo.build("dilated_inception", 4, padding="valid", dilation=2)
    assert block(torch.randn(2, 13, 4)).shape == (2, 1, 4)
    with pytest.raises(ValueError, match=r"x has 12 steps .* needs at least 13"):
        block(torch.randn(2, 12, 4))


@pytest.mark.parametrize("shape", [(9, 4), (0, 9, 4), (2, 0, 9, 4), (2, 3, 4, 9, 4)])
def test_any_leading_axes(shape: tuple[int, ...]) -> None:
    block = attnzoo.build("dilated_inception", 4, c_out=8, gated=True)
    assert block(torch.randn(shape)).shape == (*shape[:-1], 8)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"c": 10}, "c_out=10 must be a multiple of the 4 branches .* 8 and 12"),
        ({"c": 8, "c_out": 3}, "c_out=3 must be a multiple of the 4 branches .* nearest: 4"),
        ({"c": 8, "kernels": ()}, r"kernels=\(\) must be non-empty"),
        ({"c": 8, "kernels": (2, 0)}, r"kernels\[1\]=0 must be at least 1"),
        ({"c": 8, "dilation": 0}, "dilation=0 must be at least 1"),
        ({"c": 8, "c_out": 0}, "c_out=0 must be at least 1"),
        ({"c": 8, "padding": "casual"}, "did you mean 'causal'"),
        ({"c": 0}, "must be at least 1"),
    ],
)
def test_refusals(config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("dilated_inception", **config)


@pytest.mark.parametrize(
    "naming",
    [
        {"filter_conv": "filter_convs.3", "gate_conv": "gate_convs.3"},
        {
            "filter_conv.tconv": "_filter_conv._time_conv",
            "gate_conv.tconv": "_gate_conv._time_conv",
        },
    ],
)
def test_other_namings_load(naming: dict[str, str]) -> None:
    _, block, inputs = made("dilated_inception", gated=True, c=8)
    theirs = {}
    for key, value in block.state_dict().items():
        for ours, name in naming.items():
            if key.startswith(ours):
                theirs[name + key.removeprefix(ours)] = (
                    value.unsqueeze(2) if value.ndim == 3 else value
                )
    idle = (
        "start_conv residual_convs skip_convs gconv1 gconv2 norm skip0 skipE end_conv_1 end_conv_2 "
        "gc"
        if "filter_conv" in naming
        else "_residual_conv _skip_conv _normalization _mixprop_conv1 _mixprop_conv2"
    )
    theirs |= {f"{layer}.weight": torch.ones(2) for layer in idle.split()}
    twin = attnzoo.from_upstream("dilated_inception", theirs, c=8, gated=True)
    assert_close(twin(inputs["x"]), block(inputs["x"]))
