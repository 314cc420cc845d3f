"""Multi-scale gated tanh unit: its formula, pooling, gtu_only and errors."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import attnzoo
from attnzoo.registry import find
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters
from attnzoo.testing.work import work

from contract import made, step
from distributions import assert_uniform

CONFIGS = [
    {},
    {"length": 7},
    {"length": 13, "residual": False},
    {"length": 9, "pool": 2},
    {"length": 12, "pool": 2, "residual": False},
    {"length": 11, "pool": 3, "kernels": (4, 1)},
    {"length": 5, "kernels": (2,)},
    {"length": 8, "kernels": (8, 3, 2, 1)},
]


def unit(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1) -> Tensor:
    """The authors' unit, on their layout (B, C, N, T)."""
    u = F.conv2d(x, weight.unsqueeze(2), bias, stride=(1, stride))
    return u[:, : x.shape[1]].tanh() * u[:, -x.shape[1] :].sigmoid()


def written_out(block: torch.nn.Module, x: Tensor) -> Tensor:
    x = x.permute(0, 3, 1, 2)  # B C N T
    maps = []
    for k in block.kernels:
        conv = block.get_submodule(f"gtu{k}.con2out")
        g = unit(x, conv.weight, conv.bias)
        maps.append(F.max_pool2d(g, (1, block.pool)) if block.pool else g)
    y = F.linear(torch.cat(maps, -1), block.fcmy.weight, block.fcmy.bias)
    return (x + y if block.residual else y).relu().permute(0, 2, 3, 1)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_equals_the_formula_written_out(config: dict) -> None:
    block = attnzoo.build("m_gtu", 5, dropout=0.0, dtype=torch.float64, **config)
    randomize_parameters(block)
    inputs = {"x": torch.randn(2, 3, block.length, 5, dtype=torch.float64)}
    assert_close(
        step(block, inputs), step(block, inputs, lambda leaves: written_out(block, leaves["x"]))
    )


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_closed_forms(config: dict) -> None:
    _, block, inputs = made("m_gtu", c=6, **config)
    form = find("m_gtu").closed_form(c=6, **config)
    assert form.params == sum(p.numel() for p in block.parameters())
    assert form.executed == work(block, inputs).macs


def test_parameters_are_those_of_the_authors() -> None:
    assert find("m_gtu").closed_form(c=32)[:2] == (31_212, 238_592)


@pytest.mark.parametrize("kernel, stride, steps", [(4, 1, 9), (4, 2, 9), (3, 3, 3), (1, 2, 8)])
def test_gtu_only(kernel: int, stride: int, steps: int) -> None:
    config = {"c": 5, "gtu_only": True, "kernels": (kernel,), "stride": stride}
    entry, block, _ = made("m_gtu", dtype=torch.float64, **config)
    x = torch.randn(2, 3, steps, 5, dtype=torch.float64)
    conv = block.get_submodule(f"gtu{kernel}.con2out")
    wanted = unit(x.permute(0, 3, 1, 2), conv.weight, conv.bias, stride).permute(0, 2, 3, 1)
    assert_close(block(x), wanted)
    extent = attnzoo.InputSize(batch=2, steps=steps)
    form = entry.closed_form(extent, **config)
    assert form.params == sum(p.numel() for p in block.parameters())
    assert form.executed == work(block, {"x": x[:, 0]}).macs


def test_dropout_acts_only_in_training() -> None:
    _, block, inputs = made("m_gtu", dropout=0.5)
    x = inputs["x"]
    assert torch.equal(block(x), block(x))
    assert not torch.equal(block.train()(x), block(x))


def test_dropout_is_between_the_mixing_and_the_residual(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = []

    def drop_everything(y: Tensor, rate: float, training: bool) -> Tensor:
        rates.append((rate, training))
        return y * 0

    monkeypatch.setattr(F, "dropout", drop_everything)
    for residual in (True, False):
        _, block, inputs = made("m_gtu", dropout=0.4, residual=residual, train=True)
        x = inputs["x"]
        assert_close(block(x), x.relu() if residual else 0 * x)
    assert rates == [(0.4, True)] * 2


def test_initial_distributions() -> None:
    """torch's default everywhere, as in the authors' modules."""
    block = attnzoo.build("m_gtu", 64, length=60)
    for kernel in (3, 5, 7):
        conv = block.get_submodule(f"gtu{kernel}.con2out")
        assert_uniform(conv.weight.detach(), (64 * kernel) ** -0.5)
        assert_uniform(conv.bias.detach(), (64 * kernel) ** -0.5)
    assert_uniform(block.fcmy.weight.detach(), (58 + 56 + 54) ** -0.5)
    assert_uniform(block.fcmy.bias.detach(), (58 + 56 + 54) ** -0.5)


def test_example_inputs_have_the_length_the_block_is_built_for() -> None:
    size = attnzoo.InputSize(batch=3, steps=20)
    for config, steps in (({"length": 15}, 15), ({"gtu_only": True, "kernels": (3,)}, 20)):
        _, _, inputs = made("m_gtu", size, **config)
        assert inputs["x"].shape == (3, steps, 32)


@pytest.mark.parametrize("lead", [(), (0,), (2, 0), (2, 3, 4)])
def test_any_leading_axes(lead: tuple[int, ...]) -> None:
    block = attnzoo.build("m_gtu", 4, length=9, pool=2)
    assert block(torch.randn(*lead, 9, 4)).shape == (*lead, 9, 4)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"length": 6}, r"k=7 leaves no step of length=6; .* at most 6, or length=7"),
        ({"length": 7, "pool": 2}, r"k=7 and pool=2 leaves no step .* or length=8"),
        ({"kernels": (3, 3)}, r"must all differ.*take kernels=\(3,\)"),
        ({"kernels": ()}, "must be non-empty"),
        ({"stride": 2}, "stride=2 needs gtu_only=True"),
        ({"gtu_only": True}, r"takes one kernel, not kernels=\(3, 5, 7\)"),
        ({"gtu_only": True, "kernels": (3,), "pool": 2}, "take pool=None"),
        ({"pool": 0}, "pool=0 must be at least 1"),
        ({"dropout": 1.0}, "below 1"),
    ],
)
def test_refusals(config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("m_gtu", 8, **config)


def test_wrong_lengths_raise_clear_errors() -> None:
    with pytest.raises(ValueError, match=r"x has 11 steps .* build it with length=11"):
        attnzoo.build("m_gtu", 8)(torch.randn(2, 11, 8))
    with pytest.raises(ValueError, match=r"x has 3 steps .* fewer than the kernel of 4"):
        attnzoo.build("m_gtu", 8, gtu_only=True, kernels=(4,))(torch.randn(2, 3, 8))
    unit = attnzoo.build("m_gtu", 8, gtu_only=True, kernels=(4,))
    assert unit(torch.randn(2, 4, 8)).shape == (2, 1, 8)


def test_checkpoints_of_a_unit_and_of_a_copy_load() -> None:
    _, block, inputs = made("m_gtu", c=6)
    state = block.state_dict()
    theirs = {
        f"BlockList.1.{key.replace('fcmy', 'fcmy.0')}": value.unsqueeze(2)
        if value.ndim == 3
        else value
        for key, value in state.items()
    }
    theirs["BlockList.1.ln.weight"] = torch.ones(6)
    alone = attnzoo.from_upstream(
        "m_gtu", theirs, c=6, gtu_only=True, kernels=(5,), prefix="BlockList.1.gtu5"
    )
    assert torch.equal(alone.gtu5.con2out.weight, block.gtu5.con2out.weight)
    whole = attnzoo.from_upstream("m_gtu", theirs, c=6)
    assert_close(whole.eval()(inputs["x"]), block(inputs["x"]))
    names = {"gtu3": "gtu0", "gtu5": "gtu1", "gtu7": "gtu2", "fcmy": "fcmy.0"}
    copied = {names[k.split(".")[0]] + k[k.index(".") :]: v for k, v in state.items()}
    twin = attnzoo.from_upstream("m_gtu", copied, c=6)
    assert_close(twin.eval()(inputs["x"]), block(inputs["x"]))
