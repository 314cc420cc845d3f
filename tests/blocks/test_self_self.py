"""Self-self attention against its formula, and with weights of CLIP's last attention."""

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo import remove_global_bias
from attnzoo.testing.closeness import assert_close

from contract import made
from distributions import assert_uniform

WEIGHTS = {"qk": ["qk"], "qq": ["qq"], "csa": ["qq", "kk"], "qkv": ["qq", "kk", "vv"]}


def heads_of(block: nn.Module, x: Tensor, heads: int) -> dict[str, Tensor]:
    """q, k and v of (B, T, C), each (B, heads, T, d)."""
    rows = (x @ block.in_proj.weight.T + block.in_proj.bias).chunk(3, -1)
    return {key: row.unflatten(-1, (heads, -1)).transpose(1, 2) for key, row in zip("qkv", rows)}  # noqa: B905


def joined(block: nn.Module, y: Tensor) -> Tensor:
    return y.transpose(1, 2).flatten(2) @ block.out_proj.weight.T + block.out_proj.bias


def softmax(scores: Tensor) -> Tensor:
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def formula(block: nn.Module, x: Tensor, mode: str, heads: int) -> Tensor:
    part = heads_of(block, x, heads)
    scale = (x.shape[-1] // heads) ** -0.5
    if mode == "identity":
        return joined(block, part["v"])
    weights = sum(softmax(part[a] @ part[b].mT * scale) for a, b in WEIGHTS[mode])
    return joined(block, weights @ part["v"])


def gem(block: nn.Module, x: Tensor, heads: int, iters: int, temp: float | None) -> Tensor:
    part = heads_of(block, x, heads)
    if temp is None:
        length = x.square().sum(-1).sqrt().mean(1)[:, None, None, None]
        temp = length * (x.shape[-1] // heads) ** -0.5
    y = 0
    for t in (part["v"], part["k"], part["q"]):
        unit = t / t.square().sum(-1, keepdim=True).sqrt()
        for _ in range(iters):
            unit = softmax(unit @ unit.mT * temp) @ unit
            unit = unit / unit.square().sum(-1, keepdim=True).sqrt()
        y = y + softmax(unit @ unit.mT * temp) @ part["v"] / 3
    return joined(block, y)


@pytest.mark.parametrize("mode", [*WEIGHTS, "identity"])
def test_equals_the_formula(mode: str) -> None:
    _, block, _ = made("self_self", None, torch.float64, c=12, heads=3, mode=mode)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    assert_close(block(x), formula(block, x, mode, 3))
    stacked = torch.stack((x, 2 * x))
    assert_close(block(stacked)[1], block(2 * x))
    assert_close(block(x[0]), block(x)[0])


@pytest.mark.parametrize("temp", [None, 7.0])
@pytest.mark.parametrize("iters", [0, 1, 3])
def test_gem_equals_the_formula_and_ordinary_attention(iters: int, temp: float | None) -> None:
    config = {"c": 12, "heads": 3, "iters": iters, "temp": temp}
    _, block, _ = made("self_self", None, torch.float64, mode="gem", **config)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    found, ordinary = block(x)
    assert_close(found, gem(block, x, 3, iters, temp))
    assert_close(ordinary, formula(block, x, "qk", 3))


def test_weights_of_multihead_attention_give_its_outputs() -> None:
    theirs = nn.MultiheadAttention(24, 4, batch_first=True, dtype=torch.float64)
    nn.init.normal_(theirs.in_proj_bias)
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    block = attnzoo.from_upstream("self_self", theirs.state_dict(), c=24, heads=4, mode="qk")
    assert_close(block.double()(x), theirs(x, x, x, need_weights=False)[0], torch.float32)


def test_the_last_attention_of_clip_loads_from_its_checkpoint() -> None:
    tower = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3, enable_nested_tensor=False
    )
    keys = {k.replace("self_attn", "attn"): v for k, v in tower.state_dict().items()}
    with pytest.raises(ValueError, match="pick one with prefix="):
        attnzoo.from_upstream("self_self", keys, c=16, heads=2)
    block = attnzoo.from_upstream("self_self", keys, c=16, heads=2, prefix="layers.2.attn")
    assert torch.equal(block.in_proj.weight, tower.layers[2].self_attn.in_proj_weight)
    assert torch.equal(block.out_proj.bias, tower.layers[2].self_attn.out_proj.bias)


def test_global_bias_does_not_change_the_class_token() -> None:
    _, block, _ = made("self_self", None, torch.float64, c=8, heads=2)
    _, without, _ = made("self_self", None, torch.float64, c=8, heads=2, global_bias=0.3)
    without.load_state_dict(block.state_dict())
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    wanted = block(x).detach()
    wanted[:, 1:] -= 0.3 * wanted[:, :1]
    assert_close(without(x), wanted)
    assert_close(without(x[:, :1]), block(x[:, :1]))


def test_removing_the_global_bias_from_logits_and_from_features_agrees() -> None:
    patches, cls, text = torch.randn(2, 6, 8), torch.randn(2, 8), torch.randn(5, 8)
    unit = patches / patches.norm(dim=-1, keepdim=True)
    logits, of_cls = unit @ text.T, cls / cls.norm(dim=-1, keepdim=True) @ text.T
    for bias in (0.0, 0.3, -0.7):
        found = remove_global_bias(patches, cls, bias)
        assert_close(found, unit - bias * (cls / cls.norm(dim=-1, keepdim=True))[:, None])
        lost = remove_global_bias(logits, of_cls, bias, normalize=False)
        assert_close(lost, logits - bias * of_cls[:, None])
        assert_close(found @ text.T, lost)
    assert remove_global_bias(patches.half(), cls.half()).dtype == torch.float16
    assert not remove_global_bias(torch.zeros(2, 3), torch.zeros(3)).any()
    large = remove_global_bias(1e4 * patches.half(), cls.half(), 0.0)
    assert_close(large, unit.half())
    with pytest.raises(ValueError, match="cls has 7 channels"):
        remove_global_bias(patches, cls[:, :7])


@pytest.mark.parametrize("mode", ["qkv", "gem"])
def test_large_half_precision_tokens_stay_finite(mode: str) -> None:
    block = attnzoo.build("self_self", c=16, heads=2, mode=mode, dtype=torch.float16)
    x = 3000 * torch.randn(1, 9, 16).half()
    outputs = block(x)
    for y in outputs if mode == "gem" else (outputs,):
        assert y.isfinite().all()


def test_initial_values_are_those_of_multihead_attention() -> None:
    block = attnzoo.build("self_self", c=48)
    assert_uniform(block.in_proj.weight, (6 / (48 + 3 * 48)) ** 0.5)
    assert_uniform(block.out_proj.weight, 48**-0.5)
    assert not block.in_proj.bias.any()
    assert not block.out_proj.bias.any()


# totals for a batch of two, 9 tokens
@pytest.mark.parametrize(
    ("mode", "macs"),
    [("qkv", 18144), ("csa", 16200), ("qq", 14256), ("qk", 14256), ("gem", 40176)],
)
def test_costs(mode: str, macs: int) -> None:
    block = attnzoo.build("self_self", c=12, heads=3, mode=mode)
    assert 2 * block.macs(attnzoo.InputSize(steps=9)) == macs
    assert sum(p.numel() for p in block.parameters()) == 624


def test_refusals() -> None:
    for config, words in (
        ({"heads": 5}, "heads=5 must divide c=12"),
        ({"mode": "qkk"}, "mode='qkk' must be one of"),
        ({"temp": 0.0}, "temp=0.0"),
        ({"iters": -1}, "iters=-1"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            attnzoo.build("self_self", c=12, **config)


def test_the_global_bias_is_weighed_as_in_segearth_ov_by_default() -> None:
    features, cls = torch.randn(2, 5, 4), torch.randn(2, 4)
    found = attnzoo.remove_global_bias(features, cls)
    assert torch.equal(found, attnzoo.remove_global_bias(features, cls, 0.3))
