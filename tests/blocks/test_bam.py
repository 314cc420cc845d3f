"""BAM against the authors' layers, its sizes, counts and errors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo

from contract import assert_steps_equal, made
from distributions import assert_uniform

SQUARE, WIDE, TALL = (7, 7), (4, 9), (9, 1)


def formula(block: nn.Module, x: Tensor) -> Tensor:
    h, w = x.shape[2:]
    g = x.sum((2, 3)) / (h * w)
    for i in range(sum(name.startswith("bn") for name, _ in block.channel.named_children())):
        fc, bn = getattr(block.channel, f"fc_{i}"), getattr(block.channel, f"bn_{i + 1}")
        g = bn(g @ fc.weight.T + fc.bias).clamp(min=0)
    g = g @ block.channel.fc_final.weight.T + block.channel.fc_final.bias
    s = F.conv2d(x, block.spatial.conv_reduce0.weight, block.spatial.conv_reduce0.bias)
    s = block.spatial.bn_reduce0(s).clamp(min=0)
    for i in range(sum("conv_di" in name for name, _ in block.spatial.named_children())):
        conv = getattr(block.spatial, f"conv_di_{i}")
        (d, _) = conv.dilation
        padded = F.pad(s, (d, d, d, d))
        s = sum(
            torch.einsum("bchw,oc->bohw", padded[:, :, j * d :, k * d :][:, :, :h, :w], tap)
            for j in range(3)
            for k in range(3)
            for tap in (conv.weight[:, :, j, k],)
        )
        s = getattr(block.spatial, f"bn_di_{i}")(s + conv.bias[:, None, None]).clamp(min=0)
    last = block.spatial.conv_final
    s = torch.einsum("bchw,oc->bohw", s, last.weight.flatten(1)) + last.bias
    return x * (1 + 1 / (1 + (-g[:, :, None, None] * s).exp()))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL, (1, 1)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        {"c": 32},
        {"c": 9, "reduction": 4, "dilation": 1, "spatial_layers": 1, "channel_layers": 3},
        {"c": 6, "reduction": 2, "dilation": 2, "spatial_layers": 3},
    ],
    ids=str,
)
def test_equals_the_authors_layers(
    config: dict[str, Any], size: tuple[int, int], train: bool
) -> None:
    at = attnzoo.InputSize(batch=3, height=size[0], width=size[1])
    _, block, inputs = made("bam", at, torch.float64, train, **config)
    assert_steps_equal(block, inputs, lambda leaves: formula(block, leaves["x"]))


def test_layers_have_the_authors_names() -> None:
    block = attnzoo.build("bam", c=32, channel_layers=2, spatial_layers=3)
    theirs = {
        key.replace("channel.", "channel_att.gate_c.gate_c_").replace(
            "spatial.", "spatial_att.gate_s.gate_s_"
        ): value
        for key, value in block.state_dict().items()
    }
    assert {"channel_att.gate_c.gate_c_fc_1.weight", "channel_att.gate_c.gate_c_bn_2.bias"} < set(
        theirs
    )
    twin = attnzoo.from_upstream("bam", theirs, c=32, channel_layers=2, spatial_layers=3)
    x = torch.randn(2, 32, 5, 6)
    assert torch.equal(twin.eval()(x), block.eval()(x))


def test_macs_by_hand() -> None:
    at = attnzoo.InputSize(3, 1, 6, 6)
    assert attnzoo.build("bam", c=32).macs(at) == 10_192 // 2
    block = attnzoo.build("bam", c=24, reduction=4, spatial_layers=3, channel_layers=2)
    per_pixel = 24 * 6 + 3 * 9 * 6 * 6 + 6
    assert block.macs(at._replace(width=5)) == 2 * 24 * 6 + 6 * 6 + 30 * per_pixel
    assert sum(p.numel() for p in attnzoo.build("bam", c=32).parameters()) == 323


def test_initial_values_are_pytorchs() -> None:
    block = attnzoo.build("bam", c=512)
    assert_uniform(block.channel.fc_0.weight, 512**-0.5)
    assert_uniform(block.channel.fc_final.weight, 32**-0.5)
    assert_uniform(block.spatial.conv_reduce0.weight, 512**-0.5)
    assert_uniform(block.spatial.conv_di_1.weight, (32 * 9) ** -0.5)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="reduction=16 leaves no channel of c=8"):
        attnzoo.build("bam", c=8)
    with pytest.raises(ValueError, match="dilation=1001 must be at least 1 and at most 1000"):
        attnzoo.build("bam", c=32, dilation=1001)
    block = attnzoo.build("bam", c=32)
    with pytest.raises(ValueError, match=r"BatchNorm 1 value per channel.*larger batch"):
        block(torch.randn(1, 32, 9, 9))
    assert block.eval()(torch.randn(1, 32, 9, 9)).isfinite().all()


@pytest.mark.parametrize(
    ("keys", "whose"),
    [
        (("ca.ca.fc0.weight", "sa.sa.conv_reduce1.weight"), "fightingcv's BAMBlock"),
        (("channel_attn.mlp.0.weight", "spatial_attn.conv1.weight"), "changzy00's BAM"),
    ],
)
def test_known_variants_that_add_the_gates_are_named(keys: tuple[str, ...], whose: str) -> None:
    with pytest.raises(ValueError, match=f"{whose}, which adds the gates"):
        attnzoo.from_upstream("bam", {key: torch.ones(2, 32) for key in keys}, c=32)
