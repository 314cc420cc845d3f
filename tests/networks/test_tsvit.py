"""TSViT against its formula, its two pixel orders, its dates in any precision."""

import math

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.testing.closeness import assert_close

from contract import made
from distributions import assert_normal, assert_uniform

CONFIG = {"c": 3, "image_size": 6, "num_classes": 4, "dim": 8, "temporal_depth": 2}
CONFIG |= {"spatial_depth": 2, "heads": 2, "dim_head": 5, "mlp_ratio": 2}


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    variance = centered.square().mean(-1, keepdim=True)
    return centered / (variance + 1e-5).sqrt() * norm.weight + norm.bias


def transformed(x: Tensor, transformer: nn.Module, heads: int) -> Tensor:
    """All tokens of (N, L, D) by every layer."""
    for layer in transformer.layers:
        rows = (normed(x, layer.norm1) @ layer.qkv.weight.T).chunk(3, -1)
        q, k, v = (r.unflatten(-1, (heads, -1)).transpose(1, 2) for r in rows)
        weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        if not isinstance(layer.proj, nn.Identity):
            y = y @ layer.proj.weight.T + layer.proj.bias
        x = x + y
        hidden = normed(x, layer.norm2) @ layer.fc1.weight.T + layer.fc1.bias
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + hidden @ layer.fc2.weight.T + layer.fc2.bias
    return normed(x, transformer.norm)


def formula(net: nn.Module, x: Tensor, days: Tensor, heads: int) -> Tensor:
    """Patch by patch, with one-hot dates; scores put into their places."""
    b, t, _, size, _ = x.shape
    p, side = net.patch_size, size // net.patch_size
    one_hot = (days[..., None] == torch.arange(366)).to(x.dtype)
    dates = one_hot @ net.day_weight.T + net.day_bias  # B T D
    kept = []
    for i in range(side):
        for j in range(side):
            patch = x[..., i * p : (i + 1) * p, j * p : (j + 1) * p]  # B T c p p
            rows = patch.permute(0, 1, 3, 4, 2).reshape(b, t, -1)
            tokens = rows @ net.embed.weight.T + net.embed.bias + dates
            series = torch.cat((net.class_tokens.expand(b, -1, -1), tokens), 1)
            kept.append(transformed(series, net.temporal, heads)[:, : net.num_classes])
    places = torch.stack(kept, 2) + net.places  # B K P D
    spatial = transformed(places.flatten(0, 1), net.spatial, heads)
    scores = normed(spatial, net.head[0]) @ net.head[1].weight.T + net.head[1].bias
    scores = scores.view(b, net.num_classes, side, side, p, p)
    out = x.new_empty(b, net.num_classes, size, size)
    for i in range(size):
        for j in range(size):
            out[:, :, i, j] = scores[:, :, i // p, j // p, i % p, j % p]
    return out


@pytest.mark.parametrize(
    "config",
    [{}, {"heads": 1, "dim_head": 8}, {"patch_size": 3, "heads": 1, "dim_head": 4}],
    ids=str,
)
def test_equals_the_formula(config: dict[str, int]) -> None:
    config = {**CONFIG, **config}
    at = attnzoo.InputSize(2, 5, 6, 6)
    _, net, inputs = made("tsvit", at, torch.float64, **config)
    days = torch.tensor([[0, 365, 3, 3, 100], [7, 1, 2, 200, 300]])
    assert_close(net(inputs["x"], positions=days), formula(net, inputs["x"], days, config["heads"]))
    assert isinstance(net.spatial.layers[0].proj, nn.Identity) == (config["dim_head"] == 8)


def test_the_published_order_is_patch_after_patch() -> None:
    _, net, inputs = made("tsvit", None, torch.float64, **CONFIG)
    published = attnzoo.build("tsvit", **CONFIG, unpatchify=False, dtype=torch.float64).eval()
    published.load_state_dict(net.state_dict())
    flat, image = published(**inputs).flatten(2), net(**inputs)
    for patch in range(9):
        i, j = divmod(patch, 3)
        corner = image[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(2)
        assert_close(flat[:, :, 4 * patch : 4 * patch + 4], corner)
    assert not torch.equal(flat, image.flatten(2))


def test_padded_dates_are_left_out() -> None:
    _, net, inputs = made("tsvit", attnzoo.InputSize(2, 6, 6, 6), torch.float64, **CONFIG)
    x, days = inputs["x"], inputs["positions"]
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[1, 3:] = True
    found = net(x, positions=days, key_padding_mask=mask)
    assert_close(found[:1], net(x[:1], positions=days[:1]))
    assert_close(found[1:], net(x[1:, :3], positions=days[1:, :3]))
    all_of_it = net(x, positions=days, key_padding_mask=torch.ones(6, dtype=torch.bool))
    assert all_of_it.isfinite().all()  # the class tokens see each other


def test_dates_keep_their_precision_under_autocast() -> None:
    net = attnzoo.build("tsvit", **CONFIG).eval()
    x, days = torch.randn(1, 366, 3, 6, 6), torch.arange(366)[None]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net._dates(days, x)[0], net.day_weight.T + net.day_bias)
        assert net(x[:, :3], positions=days[:, :3]).isfinite().all()


def test_large_batches_take_the_fused_attention_and_agree() -> None:
    config = {**CONFIG, "heads": 4, "dim_head": 16, "image_size": 8}
    _, net, inputs = made("tsvit", attnzoo.InputSize(8, 24, 8, 8), torch.float64, **config)
    mask = torch.arange(24) >= 20
    fused = net(**inputs, key_padding_mask=mask)
    with attnzoo.autograd.reference_forms():
        plain = net(**inputs, key_padding_mask=mask)
    assert_close(fused, plain)
    found, wanted = (torch.autograd.grad(y.sin().sum(), net.parameters()) for y in (fused, plain))
    assert_close(found, wanted)


def test_published_counts() -> None:
    for config, params, macs in (
        ({}, 1657476, 12.47e9),
        ({"dim": 64, "dim_head": 16}, 435524, 3.46e9),
    ):
        with torch.device("meta"):
            net = attnzoo.build("tsvit", c=10, **config)
        assert sum(p.numel() for p in net.parameters()) == params
        assert abs(net.macs(attnzoo.InputSize(steps=60)) / macs - 1) < 1e-3


def test_starts_as_the_authors_do() -> None:
    net = attnzoo.build("tsvit", c=10)
    assert_normal(net.class_tokens, 1)
    assert_normal(net.places, 1)
    assert_uniform(net.embed.weight, 40**-0.5)
    assert_uniform(net.day_weight, 366**-0.5)
    assert_uniform(net.day_bias, 366**-0.5)
    assert_uniform(net.temporal.layers[0].qkv.weight, 128**-0.5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="patch_size=4 must divide image_size=6"):
        attnzoo.build("tsvit", **CONFIG, patch_size=4)
    net = attnzoo.build("tsvit", **CONFIG)
    x, days = torch.randn(2, 4, 3, 6, 6), torch.tensor([1, 2, 3, 365])
    assert net(x, positions=days).shape == (2, 4, 6, 6)
    for series, positions, words in (
        (x, None, r"positions is missing: pass the day.*\(2, 4\)"),
        (x, days + 1, "days from 2 to 366; they must be days of the year, 0 to 365"),
        (x, days - 2, "days from -1 to 363"),
        (x, days.half(), r"positions is torch.float16; .*positions.long\(\)"),
        (x, days[:3], r"positions has shape \(3,\)"),
        (x[..., :5, :], days, "x is 5 x 6; the network has places for image_size=6"),
        (x[:, :, :2], days, "x has 2 channels"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            net(series, positions=positions)
