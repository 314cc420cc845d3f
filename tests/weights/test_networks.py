"""Whole checkpoints into networks with many blocks, in one call."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import attnzoo
from attnzoo.testing.inputs import randomize_parameters

Weights = dict[str, Tensor]
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def random_like(net: nn.Module) -> Weights:
    """Weights of the network, every element drawn."""
    randomize_parameters(net)
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return {key: value.clone() for key, value in net.state_dict().items()}


def resnet(name: str, **config: Any) -> nn.Module:
    """A ResNet of torchvision with a block behind every last norm of a residual branch."""
    block = torchvision.models.resnet.BasicBlock
    net = torchvision.models.ResNet(block, (2, 1, 1, 1), num_classes=5)
    attnzoo.insert(net, "layer?.*.bn2", name, example_input=X, **config)
    return net


CBAM = {
    "fc1": "ChannelGate.mlp.1",
    "fc2": "ChannelGate.mlp.3",
    "spatial": "SpatialGate.spatial",
}


def as_cbam(state: Weights) -> Weights:
    """The names of CBAM's authors, whose network was saved under DataParallel."""
    found = {}
    for key, value in state.items():
        theirs = key.replace("bn2.attnzoo.", "cbam.")
        for ours, name in CBAM.items():
            theirs = theirs.replace(f"cbam.{ours}.", f"cbam.{name}.")
        found[f"module.{theirs}"] = value
    return found


def mobilenet(name: str) -> nn.Module:
    """MobileNetV2 with a block behind the depthwise convolution, as in CA's network."""
    net = torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.35)
    where = re.compile(r"features\.(?:[2-9]|1[0-7])\.conv\.1")
    attnzoo.insert(net, where, name, example_input=X)
    return net


def as_mobilenet_with_ca(state: Weights) -> Weights:
    """The numbering of mbv2_ca.py: flat layers, of which the block is one; conv2 and conv3."""
    layer = re.compile(r"(features\.\d+\.conv)\.(1\.attnzoo|\d+(?:\.\d+)?)\.(.*)")
    paths: dict[str, list[str]] = {}
    found: Weights = {}
    for key, value in state.items():
        match = layer.fullmatch(key)
        if match is None:
            found[key.replace("classifier.1.", "classifier.")] = value
            continue
        stage, path, last = match.groups()
        known = paths.setdefault(stage, [])
        known += [] if path in known else [path]
        last = last.replace("conv_h", "conv2").replace("conv_w", "conv3")
        found[f"{stage}.{known.index(path)}.{last}"] = value
    assert len(found) == len(state)
    return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[Weights], Weights]]] = {
    "CBAM's ResNet": (lambda: resnet("cbam", reduction=8), as_cbam),
    "MobileNetV2 with CA": (lambda: mobilenet("coordatt"), as_mobilenet_with_ca),
    "ours": (lambda: resnet("coordatt"), lambda state: state),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_every_block_and_layer_is_loaded(case: str, tmp_path: Path) -> None:
    make, renamed = NETWORKS[case]
    net = make()
    state = random_like(net)
    theirs = renamed(state)
    assert case == "ours" or not theirs.keys() >= state.keys()
    torch.save({"state_dict": theirs, "epoch": 3}, tmp_path / "net.pth")
    for given in (theirs, {"model": theirs}, tmp_path / "net.pth"):
        for value in net.state_dict().values():
            value.zero_()
        assert attnzoo.from_upstream(model=net, state_dict=given) is net
        for key, value in net.state_dict().items():
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("bias", [True, False])
def test_timms_seresnet_into_a_resnet_with_se(bias: bool) -> None:
    """Their squeeze-and-excitation is of 1x1 convolutions, ours of linear layers."""
    options = {"layers": (1, 1, 1, 1), "num_classes": 5, "block": timm.models.resnet.Bottleneck}
    theirs = timm.models.resnet.ResNet(**options, block_args={"attn_layer": "se"}).eval()
    state = random_like(theirs)
    layer = attnzoo.attn_layer("se", bias=bias)
    net = timm.models.resnet.ResNet(**options, block_args={"attn_layer": layer}).eval()
    if not bias:
        before = {key: value.clone() for key, value in net.state_dict().items()}
        with pytest.raises(ValueError, match=r"'se' at 'layer1\.0\.se'.*build it with bias=True"):
            attnzoo.from_upstream(state, model=net)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
        return
    attnzoo.from_upstream(state, model=net)
    with torch.no_grad():
        torch.testing.assert_close(net(X), theirs(X), atol=1e-4, rtol=1e-4)


def test_selective_kernels_in_a_network_of_other_names() -> None:
    """timm's names of SKNet's layers, which are ours; the layers around them go by their order."""
    options = {"groups": 8, "min_dim": 16}
    net = nn.Sequential(nn.Conv2d(3, 16, 1), attnzoo.build("sknet", c=16, **options))
    net.append(attnzoo.build("sknet", c=16, **options)).append(nn.Conv2d(16, 2, 1))
    state = random_like(net)
    names = {"0": "stem", "1": "layer1.conv2", "2": "layer2.conv2", "3": "head"}
    theirs = {f"{names[k.split('.')[0]]}.{k.split('.', 1)[1]}": v for k, v in state.items()}
    for value in net.state_dict().values():
        value.zero_()
    attnzoo.from_upstream(model=net, state_dict=theirs)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_blocks_take_the_nearest_prefix_and_not_the_first() -> None:
    """All blocks have the same shapes, and the checkpoint lists them the other way round."""
    parts = {
        str(i): nn.Sequential(nn.Conv2d(8, 8, 1), attnzoo.build("se", c=8, reduction=2))
        for i in range(3)
    }
    net = nn.ModuleDict(parts)
    state = random_like(net)
    theirs = {re.sub(r"^(\d)\.1\.", r"\1.gate.", key): state[key] for key in reversed(state)}
    for value in net.state_dict().values():
        value.zero_()
    attnzoo.from_upstream(model=net, state_dict=theirs)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    net = resnet("cbam", reduction=8)
    state = as_cbam({key: value.clone() for key, value in net.state_dict().items()})
    random_like(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    gate = "module.layer2.0.cbam.ChannelGate.mlp.1.weight"
    for change, words in (
        ({"module.extra.weight": torch.ones(3)}, r"unexpected: module\.extra\.weight"),
        ({"module.fc.bias": torch.ones(3)}, r"fc\.bias of shape \(3,\) for \(5,\)"),
        ({"module.fc.bias": None}, r"missing: fc\.bias\. Build the network"),
        ({gate: None}, r"fit the 'cbam' at 'layer2\.0\.bn2\.attnzoo', which has fc1\.weight"),
        ({gate: torch.ones(2, 2)}, r"1\.weight \(2, 2\), .*the config of the checkpoint's"),
    ):
        given = {k: v for k, v in {**state, **change}.items() if v is not None}
        with pytest.raises(ValueError, match=words):
            attnzoo.from_upstream(model=net, state_dict=given)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(TypeError, match="a block's name and config, or model= and its state_dict"):
        attnzoo.from_upstream("cbam", state, model=net)
    with pytest.raises(TypeError, match=r"model='cbam' must be an nn\.Module"):
        attnzoo.from_upstream(state, model="cbam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="meta device has no values"):
        attnzoo.from_upstream(state, model=net.to("meta"))


def test_checkpoints_of_averages_and_in_nested_dictionaries() -> None:
    x = torch.randn(1, 3, 32, 32)
    nets = [torchvision.models.resnet18(num_classes=5) for _ in range(2)]
    for net in nets:
        attnzoo.insert(net, "layer1", "se", example_input=x)
    average = torch.optim.swa_utils.AveragedModel(nets[0]).state_dict()
    assert "n_averaged" in average
    for state in (average, {"epoch": 3, "checkpoint": {"model": average, "step": 7}}):
        nets[1].layer1.attnzoo.fc1.weight.data.zero_()
        attnzoo.from_upstream(model=nets[1], state_dict=state)
        assert torch.equal(nets[1].eval()(x), nets[0].eval()(x))
