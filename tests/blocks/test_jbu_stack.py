"""jbu_stack and jbu_one: four steps, and the mixing of channels before or after them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnzoo
from attnzoo import InputSize
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from distributions import assert_uniform

names = pytest.mark.parametrize("name", ["jbu_stack", "jbu_one"])
SMALL = {"guidance": 2, "key_dim": 4, "radius": 1}


def made(name: str, **config: object) -> nn.Module:
    block = attnzoo.build(name, 3, **SMALL, **config, dtype=torch.float64).eval()
    randomize_parameters(block)
    return block


def inputs(h: int = 2, w: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, h, w).double(), torch.randn(2, 2, 21, 40).double()


@names
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_the_formula(name: str, size: tuple[int, int]) -> None:
    block, (source, guidance) = made(name), inputs(*size)
    x = source
    for step in (
        (block.up,) * 4
        if name == "jbu_one"
        else [block.get_submodule(f"up{i}") for i in range(1, 5)]
    ):
        x = step(x, F.adaptive_avg_pool2d(guidance, (2 * x.shape[2], 2 * x.shape[3])))
    conv = block.fixup_proj[1]
    mixed = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x) + conv.bias[:, None, None]
    assert_close(block(source, guidance), x + 0.1 * mixed)


@names
@pytest.mark.parametrize("where", ["fixup_proj", "fixup_proj.1", "fixup_proj.0"])
def test_a_hooked_layer_is_called_after_the_steps(name: str, where: str) -> None:
    block, args = made(name), inputs()
    wanted, shapes = block(*args), []
    layer = block.get_submodule(where)
    layer.register_forward_hook(lambda _, args, __: shapes.append(tuple(args[0].shape)))
    assert_close(block(*args), wanted)
    assert shapes == [(2, 3, 32, 48)]
    layer.register_forward_hook(lambda _, __, y: y.relu())  # not linear
    assert not torch.allclose(block(*args), wanted)


@names
def test_a_hooked_step_and_a_replaced_layer_take_effect(name: str) -> None:
    block, args = made(name), inputs()
    step = block.up if name == "jbu_one" else block.up3
    handle = step.register_forward_hook(lambda _, __, y: y.roll(1, 1))  # which mixes channels
    x = block(*args)
    block.fixup_proj[1].register_forward_hook(lambda *_: None)
    assert_close(block(*args), x)
    handle.remove()
    plain = block(*args)
    block.fixup_proj[1] = nn.Sequential(block.fixup_proj[1], nn.ReLU())
    assert not torch.allclose(block(*args), plain)
    block.fixup_proj[1] = nn.Conv2d(3, 3, 1, bias=False, dtype=torch.float64)
    bare = block(*args)
    block.fixup_proj[1].register_forward_hook(lambda *_: None)
    assert_close(block(*args), bare)
    block.fixup_proj[1] = nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64)
    assert block(*args).shape == bare.shape


@names
def test_dropout_drops_whole_channels_and_scales(name: str) -> None:
    block, (source, guidance) = made(name, dropout=0.0), inputs()
    upright = copy.deepcopy(block.fixup_proj)
    block.train().fixup_proj[0].p = 0.5
    nn.init.dirac_(block.fixup_proj[1].weight)
    nn.init.zeros_(block.fixup_proj[1].bias)
    block.fixup_proj[1].weight.data.mul_(10)  # y = x + what dropout left of x
    torch.manual_seed(5)
    y = block(source, guidance)
    block.fixup_proj = upright.eval()
    block.fixup_proj[1].weight.data.zero_()
    block.fixup_proj[1].bias.data.zero_()
    factors = (y / block(source, guidance)).flatten(2)
    assert_close(factors, factors[..., :1].expand_as(factors))
    assert set(factors[..., 0].round().flatten().tolist()) == {1.0, 3.0}


@names
def test_initial_values(name: str) -> None:
    block = attnzoo.build(name, 32)
    assert_uniform(block.fixup_proj[1].weight, 1 / math.sqrt(32))
    rates = [m.p for m in block.modules() if isinstance(m, nn.Dropout2d)]
    assert rates == [0.1] * (2 if name == "jbu_one" else 8) + [0.2]
    block = attnzoo.build(name, 3, dropout=0.3)
    assert {m.p for m in block.modules() if isinstance(m, nn.Dropout2d)} == {0.3}


@pytest.mark.parametrize(
    ("name", "c", "params"),
    [
        ("jbu_stack", 384, 172_772),
        ("jbu_stack", 768, 615_524),
        ("jbu_one", 384, 178_913),
        ("jbu_one", 512, 293_729),
    ],
)
def test_published_counts(name: str, c: int, params: int) -> None:
    block = attnzoo.build(name, c, device="meta")
    assert sum(p.numel() for p in block.parameters()) == params
    pixel = 7637 + 49 * c if name == "jbu_stack" else 34_637 + 121 * c
    assert block.macs(InputSize(height=7, width=5)) == 35 * (340 * pixel + 256 * c * c)


@names
def test_refusals(name: str) -> None:
    block, guidance = attnzoo.build(name, 3), torch.zeros(1, 3, 9, 9)
    least = 2 if name == "jbu_stack" else 3
    assert block.eval()(torch.zeros(1, 3, least, least), guidance).shape[2] == 16 * least
    with pytest.raises(ValueError, match=rf"source has shape .*at least {least} x {least}"):
        block(torch.zeros(1, 3, least - 1, 9), guidance)
    with pytest.raises(ValueError, match="guidance has 2 samples"):
        block(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 9, 9))


@pytest.mark.parametrize("name", ["jbu_stack", "jbu_one"])
@pytest.mark.parametrize("size", [(2, 3), (3, 2)])
def test_twice_the_source_must_exceed_the_radius(name: str, size: tuple[int, int]) -> None:
    block = attnzoo.build(name, 3, radius=4, key_dim=2)
    with pytest.raises(ValueError, match=r"radius=4 .* at least 3 x 3"):
        block(torch.zeros(1, 3, *size), torch.zeros(1, 3, 8, 8))
