"""The weights that blocks give, and their pictures."""

import re

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.attention_maps import weights
from attnzoo.testing.inputs import arguments, make_inputs, randomize_parameters

REFUSAL = "no weights to show|attentions of"
# Blocks that end with other layers than their gate, or mix two inputs: tested one by one below.
MIXERS = ("aff", "gate_exchange", "gated_fusion", "iaff")


def example(name: str) -> tuple[nn.Module, tuple[object, ...], dict[str, object]]:
    entry = attnzoo.registry.find(name)
    block = attnzoo.build(name, **entry.example).eval()
    randomize_parameters(block)
    return block, *arguments(block, make_inputs(entry, dict(entry.example), entry.input_size))


@pytest.mark.every_block
def test_weights_are_what_the_block_applies_or_are_refused(name: str) -> None:
    block, args, keywords = example(name)
    try:
        kind, found = weights(block, *args, **keywords)
    except ValueError as error:
        assert re.match(f"{name} has ({REFUSAL})", str(error))
        return
    assert found.isfinite().all()
    assert not found.requires_grad
    if kind == "gate" and name not in MIXERS:
        x, y = args[0], block(*args, **keywords)
        assert isinstance(x, Tensor)
        gated = (x * found).relu() if name == "dia" else x * found
        torch.testing.assert_close(y, gated)
    elif kind == "attention":
        sums = found.sum(-1)
        terms = sums.mean().round()
        torch.testing.assert_close(sums, terms.expand_as(sums))
        assert terms == 1 or name in ("self_self", "segearth_ov")  # which ends with the former
    elif kind == "branches":
        torch.testing.assert_close(found.sum(1), torch.ones(found[:, 0].shape))


WEIGHTED = (
    "se cbam coordatt simam sknet agent danet_channel trend_aware ltae gc psa ct_msa aff self_self "
    "mix_attention pyraformer"
)


@pytest.mark.parametrize("name", WEIGHTED.split())
def test_blocks_with_weights_are_not_refused(name: str) -> None:
    block, args, keywords = example(name)
    assert attnzoo.attention_map(block, *args, **keywords).numel()


@pytest.mark.parametrize("name", ["mamba", "resize_conv", "relu_linear", "unet_tsf"])
def test_blocks_without_weights_are_refused(name: str) -> None:
    block, args, keywords = example(name)
    with pytest.raises(ValueError, match=f"{name} has no weights to show"):
        attnzoo.attention_map(block, *args, **keywords)


@pytest.mark.parametrize(("name", "sum_of_gates"), [("aff", 2), ("iaff", 1)])
def test_a_gate_of_two_inputs_is_that_of_the_first(name: str, sum_of_gates: int) -> None:
    block, (x, y), _ = example(name)
    gate = attnzoo.attention_map(block, x, y)
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)
    torch.testing.assert_close(block(x, y), x * gate + y * (sum_of_gates - gate))


def test_a_gate_before_other_layers() -> None:
    x, y = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    block = attnzoo.build("gated_fusion", c=8).eval()
    gate = attnzoo.attention_map(block, x, y)
    mixed = (x * gate + y * (1 - gate)).flatten(0, 1)
    torch.testing.assert_close(block(x, y), block.out(mixed).view_as(x))


def test_attention_times_values_is_the_output() -> None:
    block = attnzoo.build("danet_position", c=16)
    nn.init.ones_(block.gamma)
    x = torch.randn(2, 16, 5, 7)
    matrix = attnzoo.attention_map(block, x)
    assert matrix.shape == (2, 1, 35, 35)
    values = block.value_conv(x).flatten(2)
    y = (values @ matrix[:, 0].mT).view_as(x) + x
    torch.testing.assert_close(block(x), y)


def test_the_weights_of_agents_are_joined() -> None:
    matrix = attnzoo.attention_map(attnzoo.build("agent", c=32), torch.randn(2, 32, 14, 14))
    assert matrix.shape == (2, 8, 196, 196)


def test_heads_that_are_computed_in_turn_are_all_there() -> None:
    block = attnzoo.build("ct_msa", c=32, length=24)
    found = attnzoo.attention_map(block, torch.randn(2, 24, 32))
    assert found.shape == (2, 2, 24, 24)
    assert not torch.allclose(found[:, 0], found[:, 1])


def test_few_keys_have_their_weights_too() -> None:
    """Their softmax runs over a transposed matrix."""
    block, x = attnzoo.build("self_self", c=32, heads=4, mode="qk"), torch.randn(2, 20, 32)
    few, many = (attnzoo.attention_map(block, x[:, :n]) for n in (9, 20))
    assert (few.shape, many.shape) == ((2, 4, 9, 9), (2, 4, 20, 20))
    of_the_first = many[..., :9, :9]
    torch.testing.assert_close(few, of_the_first / of_the_first.sum(-1, keepdim=True))


def test_a_users_own_gate() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * (x * x.mean((2, 3), keepdim=True).sigmoid())

    x = torch.randn(2, 3, 4, 5)
    gate = attnzoo.attention_map(Gate(), x)
    torch.testing.assert_close(gate, 2 * x.mean((2, 3), keepdim=True).sigmoid().expand_as(x))


def test_other_things_are_refused() -> None:
    with pytest.raises(TypeError, match=r"takes an nn\.Module, not 'cbam'"):
        attnzoo.attention_map("cbam", torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Linear has no weights to show"):
        attnzoo.attention_map(nn.Linear(3, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"danet has attentions of 2 shapes.*submodule"):
        attnzoo.attention_map(attnzoo.build("danet", c=16), torch.ones(1, 16, 3, 3))


@pytest.mark.parametrize(
    "name", ["cbam", "se", "agent", "psa", "ltae", "trend_aware", "gated_fusion"]
)
def test_pictures(name: str) -> None:
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    block, args, keywords = example(name)
    series = name in ("ltae", "trend_aware", "gated_fusion")
    below = torch.rand(24) if series else torch.rand(3, 40, 60)
    axes = attnzoo.plot_attention(block, *args, picture=below, **keywords)
    try:
        drawn = [image.get_array().shape for image in axes.images]
        assert drawn == {
            "cbam": [(40, 60, 3), (40, 60)],
            "agent": [(40, 60, 3), (40, 60)],
            "psa": [(4, 16)],
        }.get(name, [])
        assert len(axes.patches) == {"se": 64, "cbam": 0, "agent": 0, "psa": 0}.get(name, 24)
    finally:
        pyplot.close("all")


def test_a_series_may_be_shorter_than_the_keys() -> None:
    """A pyramid has nodes beyond the steps of the series."""
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    block = attnzoo.build("pyraformer", c=8, heads=2, windows=(4,)).eval()
    axes = attnzoo.plot_attention(block, torch.randn(1, 32, 8), picture=torch.rand(32))
    try:
        assert len(axes.patches) == 40
        assert len(axes.figure.axes[-1].lines[0].get_xdata()) == 32
    finally:
        pyplot.close("all")
