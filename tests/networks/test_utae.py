"""U-TAE against its formula: dates padded by mask or value, any size, one run of the encoder."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.reference.cases import Case, cases
from attnzoo.registry import Inputs
from attnzoo.testing.closeness import assert_close
from attnzoo.weights import from_upstream

from contract import assert_steps_equal, made, step

CONFIG = {"c": 3, "encoder_widths": (8, 8, 16), "decoder_widths": (4, 8, 16), "out_conv": (6, 5)}
CONFIG |= {"heads": 4, "d_model": 16, "dropout": 0.0}
SIZE = attnzoo.InputSize(2, 5, 16, 8)


def layers(x: Tensor, block: nn.Sequential) -> Tensor:
    """Convolutions, each with what follows it."""
    modules = iter(block)
    for conv in modules:
        pad = [conv.padding[0]] * 4
        if isinstance(conv, nn.ConvTranspose2d):
            x = F.conv_transpose2d(x, conv.weight, conv.bias, conv.stride, conv.padding)
        else:
            x = F.pad(x, pad, "constant" if conv.padding_mode == "zeros" else conv.padding_mode)
            x = F.conv2d(x, conv.weight, conv.bias, conv.stride)
        norm = next(modules)
        if not isinstance(norm, nn.ReLU):
            x = normed(x, norm)
            assert isinstance(next(modules), nn.ReLU)
        x = x.clamp(min=0)
    return x


def normed(x: Tensor, norm: nn.Module) -> Tensor:
    if isinstance(norm, nn.BatchNorm2d):
        mean, variance = norm.running_mean.view(-1, 1, 1), norm.running_var.view(-1, 1, 1)
    else:
        groups = 4 if isinstance(norm, nn.GroupNorm) else x.shape[1]
        split = x.unflatten(1, (groups, -1))
        mean, variance = (f(split, (2, 3, 4), keepdim=True) for f in (torch.mean, biased))
        mean, variance = (v.expand_as(split).flatten(1, 2) for v in (mean, variance))
    x = (x - mean) / (variance + 1e-5).sqrt()
    return x if norm.weight is None else x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def biased(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    return x.var(axes, correction=0, keepdim=keepdim)


def formula(net: nn.Module, x: Tensor, days: Tensor, padded: Tensor) -> Tensor:
    """Date by date; `padded` (B, T)."""
    maps = []
    for block in (net.in_conv, *net.down_blocks):
        outs = []
        for t in range(x.shape[1]):
            source = maps[-1][:, t] if maps else x[:, t]
            if isinstance(block, nn.Sequential):
                y = layers(source, block)
            else:
                z = layers(layers(source, block.down), block.conv1)
                y = z + layers(z, block.conv2)
            outs.append(y.masked_fill(padded[:, t, None, None, None], net.pad_value))
        maps.append(torch.stack(outs, 1))
    y, attn = net.temporal_encoder(
        maps[-1], positions=days, key_padding_mask=padded, need_weights=True
    )
    for block, skip in zip(net.up_blocks, maps[-2::-1], strict=True):
        pooled = net.aggregator(skip, attn, key_padding_mask=padded)
        z = torch.cat((layers(y, block.up), layers(pooled, block.skip_conv)), 1)
        z = layers(z, block.conv1)
        y = z + layers(z, block.conv2)
    return layers(y, net.out_conv)


@pytest.mark.parametrize(
    "config",
    [
        {"pad_value": -1.0},
        {"norm": "instance", "aggregate": "att_mean"},
        {"norm": "batch", "padding_mode": "zeros", "aggregate": "mean"},
        {"norm": "none", "padding_mode": "replicate"},
        {"encoder_widths": (8,), "decoder_widths": None},
    ],
    ids=str,
)
def test_equals_the_formula(config: dict[str, object]) -> None:
    _, net, inputs = made("utae", SIZE, torch.float64, **{**CONFIG, **config})
    x, days = inputs["x"], inputs["positions"]
    x[1, 3:] = net.pad_value
    padded = torch.zeros(2, 5, dtype=torch.bool)
    padded[1, 3:] = True
    assert_close(net(x, positions=days), formula(net, x, days, padded))


def padded_pair(**config: object) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network in train mode, inputs with padded dates, and their mask."""
    _, net, inputs = made("utae", SIZE, torch.float64, train=True, **CONFIG, **config)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 0] = mask[1, 2:] = True
    x = inputs["x"].masked_fill(mask[:, :, None, None, None], 0)
    return net, x, inputs["positions"], mask


def test_dates_are_padded_by_mask_or_by_value() -> None:
    net, x, days, mask = padded_pair()
    net.eval()
    wanted = net(x, positions=days)
    for noise in (torch.randn_like(x), torch.full_like(x, torch.nan)):
        found = net(
            torch.where(mask[:, :, None, None, None], noise, x),
            positions=days,
            key_padding_mask=mask,
        )
        assert_close(found, wanted)
    alone = mask & (torch.arange(5) == 2)  # one by mask, the others by value
    assert_close(net(x, positions=days, key_padding_mask=alone), wanted)
    nothing = net(torch.zeros_like(x), positions=days)
    assert nothing.isfinite().all()


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_traced_calls_compute_all_dates_and_agree(norm: str) -> None:
    net, x, days, mask = padded_pair(norm=norm)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    inputs = {"x": x.masked_fill(mask[:, :, None, None, None], torch.nan), "positions": days}
    inputs["key_padding_mask"] = mask
    found = step(net, inputs)
    net.load_state_dict(state)
    with reference_forms():
        wanted = step(net, inputs)
    assert_close(found, wanted)
    assert not found["inputs"][0][mask].any()


@pytest.mark.slow
def test_batch_norm_of_valid_dates_compiles_without_a_graph_break() -> None:
    net, x, days, mask = padded_pair(norm="batch")
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)

    def run(points: Inputs) -> Tensor:
        y: Tensor = compiled(points["x"], positions=days, key_padding_mask=mask)
        return y

    assert_steps_equal(net, {"x": x, "positions": days, "key_padding_mask": mask}, run)


def test_the_encoder_runs_once_on_the_dates_there_are() -> None:
    net, x, days, mask = padded_pair()
    seen = []
    for block in (net.in_conv, *net.down_blocks):
        block.register_forward_hook(lambda *args: seen.append(args[2].shape[0]))
    net(x, positions=days)
    assert seen == [int((~mask).sum())] * 3


def test_batch_norm_of_the_encoder_sees_valid_dates_once() -> None:
    _, net, inputs = made("utae", SIZE, torch.float64, train=True, **CONFIG, norm="batch")
    x, days = inputs["x"], inputs["positions"]
    x[1, 3:] = 0
    net(x, positions=days)
    norm, kept = net.in_conv[1], torch.cat((x[0], x[1, :3]))
    assert norm.num_batches_tracked == 1
    conv = net.in_conv[0](kept)
    assert_close(norm.running_var, 0.9 + 0.1 * conv.var((0, 2, 3)))


@pytest.mark.parametrize("size", [(13, 9), (8, 8), (1, 1), (3, 17)], ids=str)
def test_sizes_that_do_not_divide_are_extended_and_cropped(size: tuple[int, int]) -> None:
    at = attnzoo.InputSize(2, 4, *size)
    _, net, inputs = made("utae", at, torch.float64, **CONFIG)
    x, days = inputs["x"], inputs["positions"]
    whole = [max(8, -(-n // 4) * 4) for n in size]
    border = [0, whole[1] - size[1], 0, whole[0] - size[0]]
    large = F.pad(x.flatten(0, 1), border, "replicate").unflatten(0, (2, 4))
    y, weights = net(x, positions=days, need_weights=True)
    wanted, low = net(large, positions=days, need_weights=True)
    assert_close(y, wanted[:, :, : size[0], : size[1]])
    assert weights.shape == (4, 2, 4, -(-size[0] // 4), -(-size[1] // 4))
    assert_close(weights, low[..., : weights.shape[3], : weights.shape[4]])


def test_features_are_the_maps_of_the_decoder() -> None:
    _, net, inputs = made("utae", SIZE, torch.float64, **CONFIG)
    maps = net(**inputs, features=True)
    assert [tuple(m.shape) for m in maps] == [(2, 16, 4, 2), (2, 8, 8, 4), (2, 4, 16, 8)]
    assert_close(layers(maps[-1], net.out_conv), net(**inputs))
    again, weights = net(**inputs, features=True, need_weights=True)
    assert_close(again, maps)
    assert_close(weights.sum(2), torch.ones(4, 2, 4, 2, dtype=torch.float64))


def test_other_samples_do_not_matter() -> None:
    net, x, days, _ = padded_pair()
    net.eval()
    assert_close(net(x, positions=days)[1:], net(x[1:], positions=days[1:]))


def test_published_counts() -> None:
    with torch.device("meta"):
        net = attnzoo.build("utae", c=10)
    assert sum(p.numel() for p in net.parameters()) == 1087260
    assert net.macs(attnzoo.InputSize(steps=4, height=32, width=32)) == 458379264
    assert len(net.state_dict()) == 158


def test_a_checkpoint_with_other_keys_loads() -> None:
    (case,) = map(Case.load, cases("utae"))
    state = {f"module.{key}": value for key, value in case.part("weight").items()}
    state["optimizer.step"] = torch.ones(1)
    net = from_upstream("utae", state, **case.config).double().eval()
    inputs = {key: value for key, value in case.part("input").items() if key != "x"}
    assert_close(net(case.part("input")["x"], **inputs), case.part("output")["0"])


def test_refusals() -> None:
    for config, words in (
        ({"decoder_widths": (4, 8)}, r"decoder_widths=\(4, 8\) must have one width for each level"),
        ({"decoder_widths": (4, 8, 8)}, r"the last that of encoder_widths=\(8, 8, 16\)"),
        ({"encoder_widths": (8, 6, 16)}, r"heads=4 must divide encoder_widths\[1\]=6"),
        ({"heads": 2, "encoder_widths": (8, 6, 16)}, "norm='group'=4 must divide encoder_wid"),
        ({"heads": 3}, "heads=3 must divide"),
        ({"d_model": 18}, "heads=4 must divide d_model=18"),
    ):
        with pytest.raises(ValueError, match=words):
            attnzoo.build("utae", **{**CONFIG, **config})
    attnzoo.build("utae", **{**CONFIG, "encoder_widths": (5, 7, 16), "aggregate": "mean", "norm": "none"})  # fmt: skip  # noqa: E501
    net = attnzoo.build("utae", **CONFIG).eval()
    x, days = torch.randn(2, 4, 3, 8, 8), torch.arange(4)
    assert net(x, positions=days).shape == (2, 5, 8, 8)
    for series, positions, words in (
        (x, None, "positions is missing"),
        (x, days[:3], "positions has shape"),
        (x[:, :, :2], days, "x has 2 channels"),
    ):
        with pytest.raises(ValueError, match=words):
            net(series, positions=positions)
    with pytest.raises(ValueError, match="train-mode BatchNorm"):
        net.train()(x[:0], positions=days)
