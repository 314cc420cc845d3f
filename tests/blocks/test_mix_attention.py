"""Mix-attention against its formulas, in both variants and at many sizes of its maps."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import make_inputs

from contract import made
from distributions import assert_uniform

DIMS = (16, 12, 8, 4)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    deviation = x - x.mean(-1, keepdim=True)
    return deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + (
        norm.bias
    )


def cells(x: Tensor, size: int) -> Tensor:
    """Means over cells, one by one; those at the border average only pixels of the map."""
    rows, columns = (-(-n // size) for n in x.shape[2:])
    out = x.new_zeros(*x.shape[:2], rows, columns)
    for i in range(rows):
        for j in range(columns):
            cell = x[:, :, i * size : (i + 1) * size, j * size : (j + 1) * size]
            out[:, :, i, j] = cell.mean((2, 3))
    return out


def attended(attn: nn.Module, x: Tensor, y: Tensor, heads: int) -> Tensor:
    q = (x @ attn.q.weight.T).unflatten(2, (heads, -1)).transpose(1, 2)
    rows = gelu(y) @ attn.kv.weight.T
    k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in rows.chunk(2, 2))
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2) @ attn.proj.weight.T + attn.proj.bias


def halved(attn: nn.Module, x: Tensor, y: Tensor, heads: int, grid: tuple[int, int]) -> Tensor:
    """The attention of "city"."""
    image = x.mT.unflatten(2, grid)
    low = [max(1, n // 2) for n in grid]
    image = image[:, :, : 2 * low[0], : 2 * low[1]]
    image = image.unflatten(3, (low[1], -1)).mean(4).unflatten(2, (low[0], -1)).mean(3)
    image = torch.einsum("bchw,dc->bdhw", image, attn.sr1.weight[:, :, 0, 0])
    image = image + attn.sr1.bias[:, None, None]
    tokens = gelu(normed(image.flatten(2).mT, attn.norm1))
    out = attended(attn, tokens, normed(y, attn.norm2), heads).mT.unflatten(2, low)
    return F.interpolate(out, grid, mode="bilinear").flatten(2).mT


def formula(block: nn.Module, x: Tensor, maps: list[Tensor], heads: int) -> Tensor:
    convs, mixed = iter(block.cat_key.sr_list), []
    for f, pool in zip(maps, block.pools, strict=True):
        if pool > 1:
            conv = next(convs)
            f = torch.einsum("bchw,dc->bdhw", cells(f, pool), conv.weight[:, :, 0, 0])
            f = f + conv.bias[:, None, None]
        mixed.append(f)
    y, grid, city = torch.cat(mixed, 1).flatten(2).mT, x.shape[2:], block.variant == "city"
    x = x.flatten(2).mT

    def attend(attn: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return halved(attn, x, y, heads, grid) if city else attended(attn, x, y, heads)

    if not block.hidden:
        return attend(block.attn, x, y).mT.unflatten(2, grid)
    own = block.attn
    x, y = normed(x, own.norm1), normed(y, own.norm2)
    x = normed(x + attend(own.attn, x, y), own.norm3)
    hidden = (x @ own.mlp.fc1.weight.T + own.mlp.fc1.bias).mT.unflatten(2, grid)
    hidden = F.conv2d(F.pad(hidden, [1] * 4), own.mlp.dwconv.weight, groups=hidden.shape[1])
    hidden = hidden.flatten(2).mT + own.mlp.dwconv.bias
    return (x + gelu(hidden) @ own.mlp.fc2.weight.T + own.mlp.fc2.bias).mT.unflatten(2, grid)


@pytest.mark.parametrize("size", [(16, 24), (13, 9), (1, 1), (1, 6), (8, 3)], ids=str)
@pytest.mark.parametrize("whole", [False, True], ids=["attention", "block"])
@pytest.mark.parametrize("variant", ["ade", "city"])
def test_equals_the_formula(variant: str, whole: bool, size: tuple[int, int]) -> None:
    config = {"c": 8, "dims": DIMS, "pools": (1, 2, 4, 8), "heads": 2, "block": whole}
    config["variant"] = variant
    at = attnzoo.InputSize(2, 1, *size)
    _, block, inputs = made("mix_attention", at, torch.float64, **config)
    assert_close(block(**inputs), formula(block, inputs["x"], inputs["features"], 2))


@pytest.mark.parametrize("deep", [(3, 5), (1, 2)], ids=str)
def test_a_query_of_any_size_on_maps_of_other_depths(deep: tuple[int, int]) -> None:
    pools = (2, 3, 1)
    block = made("mix_attention", None, torch.float64, c=6, dims=(4, 3, 5), pools=pools, heads=2)[1]
    maps = [
        torch.randn(2, d, deep[0] * p - (p > 2), deep[1] * p, dtype=torch.float64)
        for d, p in zip((4, 3, 5), pools, strict=True)
    ]
    x = torch.randn(2, 6, 7, 4, dtype=torch.float64)
    assert_close(block(x, maps), formula(block, x, maps, 2))


def test_a_sample_skips_whole_branches() -> None:
    config = {"c": 8, "dims": (4,), "pools": (1,), "heads": 2, "block": True, "drop_path": 0.5}
    _, block, inputs = made("mix_attention", attnzoo.InputSize(64, 1, 3, 3), train=True, **config)
    inputs = {"x": inputs["x"][:1].expand(64, -1, -1, -1), "features": [inputs["features"][0][:1].expand(64, -1, -1, -1)]}  # fmt: skip  # noqa: E501
    found = {tuple(y.flatten().tolist()) for y in block(**inputs).detach().round(decimals=4)}
    assert len(found) == 4  # neither branch, one of them, or both
    block.eval()
    assert len({tuple(y.flatten().tolist()) for y in block(**inputs).detach()}) == 1


def test_initial_values_are_the_authors() -> None:
    torch.manual_seed(1)
    config = {"c": 32, "dims": (64, 32), "pools": (1, 2), "variant": "city", "block": True}
    block = attnzoo.build("mix_attention", **config)
    own = block.attn
    for layer in (own.attn.q, own.attn.kv, own.attn.proj, own.mlp.fc1, own.mlp.fc2):
        weight = layer.weight
        assert weight.abs().max() <= 2
        assert abs(weight.std() / 0.02 - 1) < 0.1
        assert abs(weight.mean()) < 0.002
        assert layer.bias is None or not layer.bias.any()
    depthwise, dense = own.mlp.dwconv, own.attn.sr1
    assert abs(depthwise.weight.std() / math.sqrt(2 / 9) - 1) < 0.1  # one channel out a group
    assert abs(dense.weight.std() / math.sqrt(2 / 32) - 1) < 0.1
    assert not depthwise.bias.any()
    assert not dense.bias.any()
    assert_uniform(block.cat_key.sr_list[0].weight, 64**-0.5)  # torch's own


def test_costs() -> None:
    at = attnzoo.InputSize(height=4, width=6)
    attention = attnzoo.build("mix_attention", c=12, dims=DIMS, heads=3)
    assert sum(p.numel() for p in attention.parameters()) == 1508
    c, d, r, (h, w) = 8, sum(DIMS), 3, (9, 11)
    n, m, pooled = h * w, 2 * 2, sum(dim**2 for dim in DIMS[1:])
    whole = attnzoo.build("mix_attention", c=c, dims=DIMS, heads=2, block=True, mlp_ratio=r)
    wanted = pooled * m + 2 * n * c**2 + 2 * m * d * c + 2 * n * m * c + n * (2 * r * c**2 + 9 * r * c)  # fmt: skip  # noqa: E501
    assert whole.macs(attnzoo.InputSize(height=h, width=w)) == wanted
    city = attnzoo.build("mix_attention", c=c, dims=DIMS, heads=2, variant="city")
    n, m = (h // 2) * (w // 2), 1
    wanted = sum(dim**2 for dim in DIMS) * m + 3 * n * c**2 + 2 * m * d * c + 2 * n * m * c
    assert city.macs(attnzoo.InputSize(height=h, width=w)) == wanted
    assert attention.macs(at) > 0


def test_refusals() -> None:
    for config, words in (
        ({"heads": 5}, "heads=5 must divide c=12"),
        ({"pools": (1, 2)}, r"pools=\(1, 2\) has 2 items, dims=.* 4; .*pools=\(1, 2, 4, 8\)"),
        ({"dims": ()}, "dims"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            attnzoo.build("mix_attention", **{"c": 12, "dims": DIMS, "heads": 3, **config})
    block = attnzoo.build("mix_attention", c=12, dims=DIMS, heads=3)
    entry = attnzoo.registry.find("mix_attention")
    config = {"c": 12, "dims": DIMS, "heads": 3}
    inputs = make_inputs(entry, config, attnzoo.InputSize(2, 1, 16, 24))
    x, maps = inputs["x"], inputs["features"]
    for bad, words in (
        (maps[:3], "features has 3 tensors; the block was built for 4"),
        (maps[0], "features must be a list of 4 tensors"),
        (maps[::-1], r"features\[0\] has 4 channels"),
        ([*maps[:3], maps[3][:1]], r"features\[3\] has 1 samples, x 2"),
        (
            [*maps[:3], torch.randn(2, 4, 17, 24)],
            r"features\[3\] has H=17, 3 cells of 8; features\[0\] has 2 of 1: resize features\[3\] "
            "to H from 9 to 16",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            block(x, bad)
