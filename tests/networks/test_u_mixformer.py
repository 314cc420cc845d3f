"""U-MixFormer's decoder against its order of stages, on pyramids of encoders."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import attnzoo
from attnzoo.testing.closeness import assert_close

from contract import made

CONFIG = {"dims": (4, 6, 8, 10), "num_classes": 5, "heads": (1, 2, 2, 5), "dim": 12}
CONFIG["pools"] = (8, 4, 2, 1)
DRY = {"dropout": 0.0, "drop_path": 0.0}


def formula(net: nn.Module, maps: list[Tensor]) -> Tensor:
    """Every stage by its own call, all maps joined at the first one's size."""
    mixed, decoded = list(maps), {}
    for i in reversed(range(len(maps))):
        decoded[i] = net.stages[i](maps[i], mixed[::-1])
        mixed[i] = decoded[i]
    size = maps[0].shape[2:]
    joined = torch.cat(
        [F.interpolate(decoded[i], size, mode="bilinear") for i in sorted(decoded)[::-1]], 1
    )
    fused = torch.einsum("bchw,dc->bdhw", joined, net.linear_fuse.conv.weight[:, :, 0, 0])
    bn = net.linear_fuse.bn
    if net.training:
        mean, variance = fused.mean((0, 2, 3)), fused.var((0, 2, 3), correction=0)
    else:
        mean, variance = bn.running_mean, bn.running_var
    shape = (1, -1, 1, 1)
    fused = (fused - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
    fused = (fused * bn.weight.view(shape) + bn.bias.view(shape)).clamp(min=0)
    pred = net.linear_pred
    return torch.einsum("bchw,dc->bdhw", fused, pred.weight[:, :, 0, 0]) + pred.bias.view(shape)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [(16, 24), (18, 23), (9, 5)], ids=str)
@pytest.mark.parametrize("variant", ["ade", "city"])
def test_equals_the_formula(variant: str, size: tuple[int, int], train: bool) -> None:
    at = attnzoo.InputSize(2, 1, *size)
    _, net, inputs = made("u_mixformer", at, torch.float64, train, **CONFIG, **DRY, variant=variant)
    maps = inputs["features"]
    assert_close(net(maps), formula(net, maps))
    resized = F.interpolate(formula(net, maps), (31, 40), mode="bilinear")
    assert_close(net(maps, size=(31, 40)), resized)


def test_three_maps_will_do() -> None:
    config = {"dims": (4, 6, 8), "heads": (1, 2, 2), "pools": (4, 2, 1)}
    _, net, inputs = made("u_mixformer", None, torch.float64, **{**CONFIG, **config})
    assert_close(net(inputs["features"]), formula(net, inputs["features"]))


def test_a_hooked_fusion_is_called() -> None:
    _, net, inputs = made("u_mixformer", None, torch.float64, **CONFIG)
    plain, seen = net(**inputs), []
    net.linear_fuse.conv.register_forward_hook(lambda *args: seen.append(args[2].shape))
    assert_close(net(**inputs), plain)
    assert seen == [(2, 12, *plain.shape[2:])]


def test_every_parameter_acts() -> None:
    for variant in ("ade", "city"):
        _, net, inputs = made("u_mixformer", None, train=True, **CONFIG, variant=variant)
        net(**inputs).square().sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_dropout_takes_whole_channels() -> None:
    config = {**CONFIG, "num_classes": 12, "dropout": 0.5, "drop_path": 0.0}
    _, net, inputs = made("u_mixformer", None, train=True, **config)
    nn.init.eye_(net.linear_pred.weight[:, :, 0, 0].data)
    with torch.no_grad():
        net.linear_pred.bias.zero_()
        net.linear_fuse.bn.bias.fill_(9.0)  # so that no channel is zero by itself
        zero = net(**inputs).flatten(2).abs().amax(2) == 0
    assert 0.2 < zero.float().mean() < 0.8


@pytest.mark.slow
def test_a_pyramid_of_timm() -> None:
    timm = pytest.importorskip("timm")
    encoder = timm.create_model("pvt_v2_b0", features_only=True).eval()
    dims = encoder.feature_info.channels()
    assert dims == [32, 64, 160, 256]
    net = attnzoo.build("u_mixformer", dims=dims, num_classes=3).eval()
    with torch.no_grad():
        assert net(encoder(torch.randn(1, 3, 64, 96)), size=(64, 96)).shape == (1, 3, 64, 96)


@pytest.mark.slow
def test_the_maps_of_a_segformer() -> None:
    transformers = pytest.importorskip("transformers")
    encoder = transformers.SegformerModel(transformers.SegformerConfig()).eval()
    net = attnzoo.build("u_mixformer", dims=(32, 64, 160, 256), num_classes=3).eval()
    with torch.no_grad():
        maps = encoder(torch.randn(1, 3, 70, 90), output_hidden_states=True).hidden_states
        assert net(list(maps)).shape == (1, 3, 18, 23)


# acting parameters and multiply-adds of the authors' heads, at a stride of 4 of the image
@pytest.mark.parametrize(
    ("config", "size", "params", "macs"),
    [
        ({"dims": (32, 64, 160, 256)}, (128, 128), 1725590, 2876112896),
        ({"dims": (64, 64, 160, 256)}, None, 1842262, None),
        ({"dims": (64, 128, 320, 512)}, (128, 128), 6651030, 7299923968),
        ({"dims": (64, 128, 320, 512), "dim": 768}, (128, 128), 7403670, 19610206208),
        (
            {"dims": (32, 64, 160, 256), "variant": "city", "num_classes": 19},
            (256, 512), 2073747, 17105420288,
        ),
    ],
)  # fmt: skip
def test_published_counts(
    config: dict[str, object], size: tuple[int, int] | None, params: int, macs: int | None
) -> None:
    with torch.device("meta"):
        net = attnzoo.build("u_mixformer", **config)
    assert sum(p.numel() for p in net.parameters()) == params
    if size is not None:
        at = attnzoo.InputSize(height=size[0], width=size[1])
        assert net.macs(at) == macs
        fuse = size[0] * size[1] * net.linear_fuse.conv.weight.numel()
        if net.cells[0] == 8:  # the joined maps are never made
            assert attnzoo.registry.find("u_mixformer").executed(at, **config) < macs - 0.8 * fuse


def test_hooks_of_stages_are_called() -> None:
    _, net, inputs = made("u_mixformer", attnzoo.InputSize(2, 1, 16, 16), **CONFIG)
    called: list[nn.Module] = []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, *_: called.append(module))
    net(inputs["features"])
    assert called == [*net.stages][::-1]


def test_starts_as_the_authors_do() -> None:
    torch.manual_seed(1)
    net = attnzoo.build("u_mixformer", **CONFIG)
    weight = net.linear_fuse.conv.weight
    assert abs(weight.std() / (2 / 12) ** 0.5 - 1) < 0.15  # kaiming, by fan out
    assert torch.equal(net.linear_fuse.bn.weight, torch.ones(12))


def test_refusals() -> None:
    for config, words in (
        ({"heads": (1, 2, 5)}, r"heads=\(1, 2, 5\) has 3 items, dims=.* 4"),
        ({"pools": (8, 4, 2)}, r"pools=\(8, 4, 2\) has 3 items"),
        ({"heads": (1, 4, 2, 5)}, "heads=4 must divide c=6"),
    ):
        with pytest.raises(ValueError, match=words):
            attnzoo.build("u_mixformer", **{**CONFIG, **config})
    _, net, inputs = made("u_mixformer", attnzoo.InputSize(2, 1, 17, 22), **CONFIG)
    maps = inputs["features"]
    floors = [torch.randn(2, c, *s) for c, s in zip(CONFIG["dims"], ((17, 22), (8, 11), (4, 5), (2, 2)), strict=True)]  # fmt: skip  # noqa: E501
    for bad, words in (
        (maps[:3], "features has 3 tensors; the block was built for 4"),
        (maps[::-1], r"features\[0\] has 10 channels"),
        (floors, r"features\[0\] has H=17, 3 cells of 8; features\[3\] has 2 of 1"),
        ([maps[0], maps[1][:1], *maps[2:]], r"features\[1\] has 1 samples"),
    ):
        with pytest.raises(ValueError, match=words):
            net(bad)
    single = attnzoo.build("u_mixformer", **CONFIG).train()
    with pytest.raises(ValueError, match="train-mode BatchNorm 1 value per channel"):
        single([torch.randn(1, c, 1, 1) for c in CONFIG["dims"]])
