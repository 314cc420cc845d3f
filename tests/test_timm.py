"""Image blocks as the `attn_layer` of timm's networks."""

import functools

import pytest
import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

import attnzoo
from attnzoo.registry import find

# Blocks that keep (B, C, H, W) and can be built from `c` alone at a narrow network's widths.
ATTENTION = [
    name
    for name in attnzoo.names(layout="image")
    if next(iter(find(name).signature.parameters)) == "c" and find(name).family != "network"
]


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
    attention = [m for m in net.modules() if isinstance(m, find(name).cls)]
    assert len(attention) == 4
    weights = [p for m in attention for p in m.parameters()]
    before = [p.detach().clone() for p in weights]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 3])
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.isfinite()
    moved = [not torch.equal(a, b) for a, b in zip(before, weights, strict=True)]
    assert any(moved) or not weights


def test_device_and_dtype_are_passed_through() -> None:
    net = ResNet(
        BasicBlock,
        (1, 1, 1, 1),
        num_classes=5,
        block_args={"attn_layer": functools.partial(attnzoo.build, "se")},
        device="meta",
        dtype=torch.bfloat16,
    )
    attention = [m for m in net.modules() if isinstance(m, find("se").cls)]
    assert attention
    assert all(p.is_meta and p.dtype == torch.bfloat16 for m in attention for p in m.parameters())
