"""Image blocks as the attention layers of timm's networks."""

import functools

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

import attnzoo
from attnzoo import cli
from attnzoo.integrations.timm import compatible_models
from attnzoo.registry import find

# Blocks that keep (B, C, H, W) and can be built from `c` alone at a narrow network's widths.
ATTENTION = [
    name
    for name in attnzoo.names(layout="image")
    if next(iter(find(name).signature.parameters)) == "c"
    and find(name).family not in ("network", "upsampler")
]


def layers_of(net: nn.Module, name: str) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, find(name).cls)]


def trains(net: nn.Module, name: str, images: torch.Tensor, blocks: int) -> None:
    """Two steps move the blocks that have weights."""
    attention = layers_of(net, name)
    assert len(attention) == blocks
    weights = [p for m in attention for p in m.parameters()]
    before = [p.detach().clone() for p in weights]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)  # blocks here differ a lot in gradients
    labels = torch.tensor([1, 3])
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    moved = [not torch.equal(a, b) for a, b in zip(before, weights, strict=True)]
    assert any(moved) or not weights


@pytest.mark.parametrize("name", ATTENTION)
def test_a_timm_resnet_trains_a_step(name: str) -> None:
    layer = functools.partial(attnzoo.build, name)
    net = ResNet(
        BasicBlock,
        (1, 1, 1, 1),
        num_classes=5,
        block_args={"attn_layer": layer},
        stem_width=32,
        zero_init_last=False,
    )
    trains(net, name, torch.randn(2, 3, 64, 64), 4)


WIDE = {"cbam": {"reduction": 4}, "se": {"reduction": 4, "bias": True}, "sknet": {"groups": 8}}
WIDE |= {name: {"reduction": 4} for name in ("bam", "gc", "self_gate")}
WIDE |= {"agent": {"qkv_bias": True}}
WIDE |= {"danet": {"reduction": 4}, "danet_position": {"reduction": 4}}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(
    ("model", "keyword", "blocks"),
    [
        ("resnext50_32x4d", "block_args", 16),
        ("efficientnet_b0", "se_layer", 16),
        ("res2net50_26w_4s", "block_args", 16),
        ("gcresnet33ts", "attn_layer", 10),
    ],
)
def test_every_image_block_goes_into_each_kind(
    name: str, model: str, keyword: str, blocks: int
) -> None:
    if (name, model) == ("psa", "efficientnet_b0"):
        pytest.skip("psa's gate divides a quarter of the channels by 16; this network starts at 8")
    layer = attnzoo.attn_layer(name, **WIDE.get(name, {}))
    keywords = {keyword: {"attn_layer": layer} if keyword == "block_args" else layer}
    if keyword == "block_args":  # zeros into a ReLU, of dia and sknet, are zeros for good
        keywords["zero_init_last"] = False
    net = timm.create_model(model, num_classes=5, **keywords)
    trains(net, name, torch.randn(2, 3, 64, 64), blocks)


def test_device_and_dtype_are_passed_through() -> None:
    for layer in (functools.partial(attnzoo.build, "se"), attnzoo.attn_layer("se")):
        net = ResNet(
            BasicBlock,
            (1, 1, 1, 1),
            num_classes=5,
            block_args={"attn_layer": layer},
            device="meta",
            dtype=torch.bfloat16,
        )
        parameters = [p for m in layers_of(net, "se") for p in m.parameters()]
        assert parameters
        assert all(p.is_meta and p.dtype == torch.bfloat16 for p in parameters)


def test_the_command_lists_what_takes_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["timm", "coordatt", "*net*18"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert "resnet18" in [line.split()[0] for line in lines]
    assert "attnzoo.attn_layer('coordatt')" in last
    assert last.startswith(f"{len(lines)} network")
    for found in compatible_models("se", "efficientnet_b0", reduction=4, bias=True):
        assert found.call == "se_layer=layer"
        net = timm.create_model(
            found.model, se_layer=attnzoo.attn_layer("se", reduction=4, bias=True)
        )
        assert len(layers_of(net, "se")) == found.blocks == 16
    assert not list(compatible_models("coordatt", "vit_tiny_patch16_224"))
    assert [t.call for t in compatible_models("se", "gcresnet33ts")] == ["attn_layer=layer"]


def test_blocks_without_an_image_and_globs_without_a_network_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="timm's layers take an image"):
        attnzoo.attn_layer("mamba")
    assert cli.main(["timm", "se", "resnett18"]) == 2
    assert "'resnett18' matches no network of timm; did you mean 'resnet18'" in (
        capsys.readouterr().err
    )
