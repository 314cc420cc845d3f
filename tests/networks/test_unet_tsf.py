"""UnetTSF against its formula, and its fold into one linear map."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import attnzoo
from attnzoo.testing.closeness import assert_close

from contract import made
from distributions import assert_uniform

CONFIG = {"c": 3, "length": 36, "horizon": 24, "stages": 3}
OTHERS = (
    {},
    {"individual": True},
    {"pool_kernel": 4, "pool_stride": 3, "pool_padding": 2, "stages": 2},
    {"stages": 1, "individual": True},
)


def formula(net: torch.nn.Module, x: Tensor) -> Tensor:
    """Variable by variable; the mean and deviation are constants."""
    out = []
    for v in range(x.shape[-1]):
        series = x[..., v].detach()
        mean = series.mean(-1, keepdim=True)
        spread = ((series - mean).square().mean(-1, keepdim=True) + 1e-5).sqrt()
        w, b = net.affine_weight[v], net.affine_bias[v]

        def mapped(layer: torch.nn.Module, z: Tensor, v: int = v) -> Tensor:
            layer = layer[v] if net.individual else layer
            return z @ layer.weight.T + layer.bias

        z, sides = (x[..., v] - mean) / spread * w + b, []
        for i, layer in enumerate(net.down):
            z = F.avg_pool1d(z[:, None], *net.pool)[:, 0] if i else z
            sides.append(mapped(layer, z))
        y = sides.pop()
        for layer in net.up:
            y = mapped(layer, torch.cat((sides.pop(), y), -1))
        out.append((y - b) / (w + 1e-10) * spread + mean)
    return torch.stack(out, -1)


@pytest.mark.parametrize("config", OTHERS, ids=str)
def test_equals_the_formula(config: dict[str, object]) -> None:
    _, net, inputs = made("unet_tsf", None, torch.float64, **{**CONFIG, **config})
    x = inputs["x"].requires_grad_()
    assert_close(net(x), formula(net, x))
    found, wanted = (torch.autograd.grad(y.sin().sum(), x)[0] for y in (net(x), formula(net, x)))
    assert_close(found, wanted)
    assert_close(net(x.expand(4, *x.shape))[2], net(x))


@pytest.mark.parametrize("config", OTHERS, ids=str)
def test_folds_into_one_linear_map(config: dict[str, object]) -> None:
    _, net, inputs = made("unet_tsf", None, torch.float64, **{**CONFIG, **config})
    folded = net.fold()
    assert not folded.training
    assert folded.macs(attnzoo.InputSize()) == 3 * 36 * 24
    assert_close(folded(inputs["x"]), net(inputs["x"]))


def test_follows_the_level_and_scale_of_a_series() -> None:
    _, net, inputs = made("unet_tsf", None, torch.float64, **CONFIG)
    x = 10 * inputs["x"]  # so that eps is nothing beside the variance
    assert_close(net(3 * x + 5), 3 * net(x) + 5, torch.float32)
    level = torch.full((1, 36, 3), 7.0, dtype=torch.float64)
    fresh = attnzoo.build("unet_tsf", **CONFIG, dtype=torch.float64)
    assert (fresh(level) - 7).abs().max() < 0.01  # a deviation of sqrt(eps)


def test_published_counts() -> None:
    lengths = {96: (96, 47, 23, 11), 720: (720, 359, 179, 89)}
    published = {96: (61308, 424956), 720: (1346202, 9392070)}
    for horizon, steps in lengths.items():
        norms = 2 * (sum(steps) + sum(steps[:-1]))  # theirs, which never act
        for individual, wanted in zip((False, True), published[horizon], strict=True):
            with torch.device("meta"):
                net = attnzoo.build(
                    "unet_tsf", c=7, length=336, horizon=horizon, individual=individual
                )
            assert sum(p.numel() for p in net.parameters()) + norms == wanted
    assert 2 * attnzoo.build("unet_tsf", **CONFIG).macs(attnzoo.InputSize()) == 12642


def test_starts_as_torch_and_the_authors_do() -> None:
    net = attnzoo.build("unet_tsf", **CONFIG)
    assert_uniform(net.down[0].weight, 36**-0.5)
    assert torch.equal(net.affine_weight, torch.ones(3))
    assert not net.affine_bias.any()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"horizon": 4, "stages": 4}, "horizon=4 has no step left at stage 3 of stages=4"),
        ({"length": 6, "stages": 3}, "length=6 has no step left at stage 3"),
        ({"pool_padding": 2}, "pool_padding=2 must be at most half of pool_kernel=3: 1"),
    ],
)
def test_refusals_of_the_constructor(config: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("unet_tsf", **{**CONFIG, **config})


def test_runs_where_only_the_authors_unused_pool_fails() -> None:
    net = attnzoo.build("unet_tsf", c=2, length=7, horizon=7, stages=3)  # 7, 3, 1
    assert net(torch.randn(1, 7, 2)).shape == (1, 7, 2)


def test_refusals_of_a_call() -> None:
    net, x = attnzoo.build("unet_tsf", **CONFIG), torch.randn(2, 36, 3)
    with pytest.raises(ValueError, match=r"x has 35 steps.*length=36"):
        net(x[:, 1:])
    with pytest.raises(ValueError, match="key_padding_mask: the network maps all 36 steps"):
        net(x, key_padding_mask=torch.zeros(2, 36, dtype=torch.bool))
