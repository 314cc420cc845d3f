"""Builds the networks of the papers with attnzoo's blocks and compares their published counts.

    python benchmarks/papers.py

writes docs/papers.md. Everything is built and counted on the meta device, without weights or data.
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import attnzoo

PAGE = Path(__file__).parent.parent / "docs" / "papers.md"
HEAD = """\
# The papers' own networks

This page is written by `python benchmarks/papers.py`, and a test checks every row. Each network is
built from blocks of attnzoo as its recipe says, on the meta device. The table gives its parameters
and, for one image of 3 x 224 x 224, the multiply-adds of convolutions and linear layers.
"Reference" is the same count for the authors' own code or network definition; for MobileNetV2 + SE
and + CBAM, it is the count for the backbone with the authors' block, at the reduction that gives
the published figure. "Published" quotes the authors' README, in its rounding; errors (top-1, in
percent) and accuracies are not measured here. EfficientViT, SwiftFormer, Agent-DeiT ("448" is the
height and width of its image) and the networks for series have no MACs in the table, since this
page does not count the products of attention. L-TAE and Pyraformer are counted without the layers
before and after them, and without the constant table of positions. ECA-Net's README divides the
number of parameters by 2^20. The README of the AFF networks gives numbers that are near those of
its PyTorch code with reduction=16, which is counted here, but do not equal them. GCNet was
published only for detectors and is not in the table.

| network | recipe | parameters | reference | MACs | reference | published |
|---|---|---:|---:|---:|---:|---|
"""


class Row(NamedTuple):
    """A network, how it is built, what the authors' code counts, and what was published."""

    name: str
    recipe: str
    build: Callable[[], nn.Module]
    params: int
    macs: int | None  # None for networks with attention and for series
    published: str = ""


def image(side: int = 224) -> torch.Tensor:
    return torch.empty(1, 3, side, side, device="meta")


def counted(net: nn.Module, macs: bool) -> tuple[int, int | None]:
    """Parameters, and multiply-adds if `macs` is True."""
    params = sum(p.numel() for p in net.parameters() if p.requires_grad)
    if not macs:
        return params, None
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net.eval()(image())
    return params, counter.get_total_flops() // 2


def resnet(depth: int, block: str = "", *, caffe: bool = False, width: int = 64, **cfg: Any) -> Any:
    """A function that builds torchvision's ResNet with a block after every branch's last norm.

    `width` 4 is ResNeXt 32x4d; `caffe` has the stride of a stage in its first 1x1 convolution.
    """

    def build() -> nn.Module:
        layers = {18: [2] * 4, 34: [3, 4, 6, 3], 50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
        kind = BasicBlock if depth < 50 else Bottleneck
        with torch.device("meta"):
            stages = layers.get(depth, [3, 8, 36, 3])
            net = ResNet(kind, stages, groups=32 if width == 4 else 1, width_per_group=width)
        for stage in (net.layer2, net.layer3, net.layer4) if caffe else ():
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        if block:
            norm = "bn2" if depth < 50 else "bn3"
            attnzoo.insert(net, f"layer?.*.{norm}", block, example_input=image(), **cfg)
        return net

    return build


def eca_resnet(depth: int, kernels: tuple[int, ...]) -> Callable[[], nn.Module]:
    """ResNet with `eca` after every branch's last norm, of one kernel size per stage."""

    def build() -> nn.Module:
        net: nn.Module = resnet(depth)()
        norm = "bn2" if depth < 50 else "bn3"
        for i, k in enumerate(kernels, 1):
            where = f"layer{i}.*.{norm}"
            attnzoo.insert(net, where, "eca", example_input=image(), kernel_size=k)
        return net

    return build


def eca_mobilenet() -> nn.Module:
    """MobileNetV2 with `eca` after the last norm of every block, one tap below 96 channels."""
    net: nn.Module = mobilenet()()

    def last(path: str, module: nn.Module, wide: bool) -> bool:
        narrow = isinstance(module, nn.BatchNorm2d) and re.fullmatch(r".*conv\.[23]", path)
        return bool(narrow) and (module.num_features >= 96) == wide

    for wide, k in ((False, 1), (True, 3)):
        where = functools.partial(last, wide=wide)
        attnzoo.insert(net, where, "eca", example_input=image(), kernel_size=k)
    return net


def bam_resnet(depth: int) -> Callable[[], nn.Module]:
    """ResNet with `bam` after each of the first three stages."""

    def build() -> nn.Module:
        net: nn.Module = resnet(depth)()
        attnzoo.insert(net, "layer[1-3]", "bam", example_input=image())
        return net

    return build


class Fused(Bottleneck):
    """A bottleneck whose residual is fused by a block of two inputs instead of added."""

    fuse: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        identity = x if self.downsample is None else self.downsample(x)
        fused: torch.Tensor = self.relu(self.fuse(y, identity))
        return fused


def fused(block: str, reduction: int, width: int = 64) -> Callable[[], nn.Module]:
    """ResNet-50, or ResNeXt 32x4d with `width` 4, whose residuals go through `aff` or `iaff`."""

    def build() -> nn.Module:
        groups = 32 if width == 4 else 1
        with torch.device("meta"):
            net = ResNet(Fused, [3, 4, 6, 3], groups=groups, width_per_group=width)
            for module in net.modules():
                if isinstance(module, Fused):
                    c = module.conv3.out_channels
                    module.fuse = attnzoo.build(block, c=c, reduction=reduction)
        return net

    return build


def epsanet(depth: int) -> Callable[[], nn.Module]:
    """ResNet with `psa` instead of every 3x3 convolution of a bottleneck."""

    def build() -> nn.Module:
        net: nn.Module = resnet(depth)()
        for stride in (1, 2):
            where = functools.partial(_strided, stride=stride)
            config = {"how": "instead", "stride": stride}
            attnzoo.insert(net, where, "psa", example_input=image(), **config)
        return net

    return build


def _strided(path: str, module: nn.Module, stride: int) -> bool:
    return path.endswith("conv2") and module.stride == (stride, stride)


def mobilenet(block: str = "", **cfg: Any) -> Callable[[], nn.Module]:
    """MobileNetV2 with a block after the depthwise convolution of every block that expands."""

    def build() -> nn.Module:
        with torch.device("meta"):
            net = torchvision.models.mobilenet_v2()

        def depthwise(path: str, module: nn.Module) -> bool:
            return path.endswith("conv.1") and isinstance(module, nn.Sequential)

        if block:
            attnzoo.insert(net, depthwise, block, example_input=image(), **cfg)
        return net

    return build


def sknet(depth: int) -> Callable[[], nn.Module]:
    """ResNeXt 32x4d with a selective kernel instead of every 3x3 convolution and its norm."""

    def build() -> nn.Module:
        net = resnet(depth, width=4)()
        for stride in (1, 2):
            where = functools.partial(_strided, stride=stride)
            config = {"how": "instead", "stride": stride}
            attnzoo.insert(net, where, "sknet", example_input=image(), **config)
        for block in net.modules():
            if isinstance(block, Bottleneck):
                block.bn2 = nn.Identity()
        return net

    return build


def swapped(model: str, theirs: str, block: str, **cfg: Any) -> Callable[[], nn.Module]:
    """A network of timm with our block instead of each of its layers of the class `theirs`."""

    def build() -> nn.Module:
        with torch.device("meta"):
            net: nn.Module = timm.create_model(model)
        attnzoo.insert(
            net,
            lambda path, module: type(module).__name__ == theirs,
            block,
            example_input=image(),
            how="instead",
            **cfg,
        )
        return net

    return build


def agent_deit(size: str, heads: int, where: str, side: int, agents: int) -> Any:
    """A function that builds timm's DeiT with agent attention in the matched layers."""

    def build() -> nn.Module:
        with torch.device("meta"):
            net: nn.Module = timm.create_model(f"deit_{size}_patch16_224", img_size=side)
        config = {"variant": "deit", "heads": heads, "agents": agents, "qkv_bias": True}
        config["window"] = (side // 16, side // 16)
        attnzoo.insert(net, where, "agent", example_input=image(side), how="instead", **config)
        return net

    return build


def alone(name: str, **config: Any) -> Callable[[], nn.Module]:
    return lambda: attnzoo.build(name, **config, device="meta")


LAST = "after the last norm of every residual branch"
DEPTHWISE = "after the depthwise convolution of the 16 blocks that expand"
SK = "`sknet` instead of every 3x3 convolution and norm of ResNeXt 32x4d"
V1 = "; Caffe's strides"
SKNET_101 = (
    "48.9 M, 8.46 G, error 20.19; the authors' prototxt counts 48,686,760 and 8,448,675,840, as "
    "one of its stages has d=16 where the rule max(C / 16, 32) gives 32"
)


def rows() -> list[Row]:
    """All networks of the page."""
    return [
        Row("ResNet-50", "torchvision", resnet(50), 25_557_032, 4_089_184_256),
        Row("ResNet-50", "torchvision" + V1, resnet(50, caffe=True), 25_557_032, 3_857_973_248),
        *_se(),
        *_cbam(),
        *_mobilenet(),
        Row("SKNet-50", SK, sknet(50), 27_479_784, 4_462_710_784, "27.5 M, 4.47 G, error 20.79"),
        Row("SKNet-101", SK, sknet(101), 48_736_040, 8_448_724_992, SKNET_101),
        *_eca(),
        *_bam_and_epsanet(),
        *_aff(),
        *_whole(),
        *_series(),
    ]


def _se() -> Iterator[Row]:
    biased, bare = f"`se`, bias=True, {LAST}", f"`se` {LAST}"

    def with_bias(depth: int, **kind: Any) -> Callable[[], nn.Module]:
        build: Callable[[], nn.Module] = resnet(depth, "se", bias=True, **kind)
        return build

    yield Row("SE-ResNet-50", biased, with_bias(50), 28_088_024, 4_091_699_200)
    for depth, params, macs, error in (
        (50, 28_088_024, 3_860_488_192, 22.37),
        (101, 49_326_872, 7_574_937_600, 21.75),
        (152, 66_821_848, 11_288_993_792, 21.34),
    ):
        build = with_bias(depth, caffe=True)
        yield Row(f"SE-ResNet-{depth}", biased + V1, build, params, macs, f"error {error}")
    yield Row("SE-ResNet-50", bare, resnet(50, "se"), 28_071_976, 4_091_699_200)
    build = resnet(50, "se", caffe=True)
    yield Row("SE-ResNet-50", bare + V1, build, 28_071_976, 3_860_488_192)
    build = with_bias(50, width=4)
    yield Row("SE-ResNeXt-50", biased, build, 27_559_896, 4_232_994_816, "27.7 M, 4.25 G")
    build = with_bias(101, width=4)
    yield Row("SE-ResNeXt-101", biased, build, 48_955_416, 7_974_739_968, "error 19.81")
    yield Row("SE-ResNeXt-50", bare, resnet(50, "se", width=4), 27_543_848, 4_232_994_816)


def _cbam() -> Iterator[Row]:
    recipe = f"`cbam` {LAST}"
    for depth, params, macs in (
        (18, 11_779_392, 1_815_063_764),
        (34, 21_960_468, 3_665_434_742),
        (50, 28_089_624, 4_095_573_110),
        (101, 49_330_172, 7_812_577_278),
    ):
        yield Row(f"CBAM-ResNet-{depth}", recipe, resnet(depth, "cbam"), params, macs)
    build = resnet(50, "cbam", caffe=True)
    yield Row("CBAM-ResNet-50", recipe + V1, build, 28_089_624, 3_864_362_102)
    build = resnet(50, "cbam", width=4)
    yield Row("CBAM-ResNeXt-50", recipe, build, 27_561_496, 4_236_868_726, "27.7 M, 4.25 G")


def _eca() -> Iterator[Row]:
    for depth, kernels, params, macs, published in (
        (18, (3, 5, 7, 7), 11_689_556, 1_814_085_760, "11.15 M of 2^20, 1.70 G, top-1 70.92"),
        (34, (3, 3, 5, 7), 21_797_744, 3_663_781_952, "20.79 M of 2^20, 3.43 G, top-1 74.21"),
        (50, (3, 5, 5, 7), 25_557_112, 4_089_270_528, "24.37 M of 2^20, 3.86 G, top-1 77.42"),
        (101, (3, 3, 5, 7), 44_549_317, 7_801_574_656, "42.49 M of 2^20, 7.35 G, top-1 78.65"),
        (152, (3, 3, 5, 7), 60_193_042, 11_513_868_544, "57.41 M of 2^20, 10.83 G, top-1 78.92"),
    ):
        recipe = f"`eca`, kernel_size={'-'.join(map(str, kernels))} by stage, {LAST}"
        build = eca_resnet(depth, kernels)
        yield Row(f"ECA-Net-{depth}", recipe, build, params, macs, published)
    recipe = "`eca`, kernel_size=1 below 96 channels, 3 from there, after the last norm of a block"
    published = "3.34 M of 2^20, 319.9 M, top-1 72.56"
    yield Row("ECA-MobileNetV2", recipe, eca_mobilenet, 3_504_903, 300_777_952, published)


def _bam_and_epsanet() -> Iterator[Row]:
    recipe = "`bam` after the first three stages"
    top = "top-1 76.86"
    yield Row("BAM-ResNet-50", recipe, bam_resnet(50), 25_915_099, 4_171_331_328, top)
    yield Row("BAM-ResNet-101", recipe, bam_resnet(101), 44_907_227, 7_883_552_512)
    recipe = "`psa` instead of every 3x3 convolution of ResNet's bottlenecks"
    published = "22.56 M, 3.62 G, top-1 77.49"
    yield Row("EPSANet-50", recipe, epsanet(50), 22_561_715, 3_597_900_160, published)
    published = "38.90 M, 6.82 G, top-1 78.43"
    yield Row("EPSANet-101", recipe, epsanet(101), 38_900_279, 6_788_125_056, published)


def _aff() -> Iterator[Row]:
    for block, net, width, r, params, macs, published in (
        ("aff", "ResNet-50", 64, 4, 45_789_864, 5_743_411_200, ""),
        ("iaff", "ResNet-50", 64, 4, 66_022_696, 7_397_638_144, ""),
        ("aff", "ResNet-50", 64, 16, 30_683_208, 4_502_740_992, "30.3 M, error 20.3"),
        ("iaff", "ResNet-50", 64, 16, 35_809_384, 4_916_297_728, "35.1 M, error 20.2"),
        ("iaff", "ResNeXt-50", 4, 16, 35_281_256, 5_057_593_344, "34.7 M, error 19.78"),
    ):
        name = f"{block.upper().replace('I', 'i')}-{net}"
        recipe = f"`{block}`, reduction={r}, instead of every residual addition"
        yield Row(name, recipe, fused(block, r, width), params, macs, published)


def _mobilenet() -> Iterator[Row]:
    yield Row(
        "MobileNetV2",
        "torchvision",
        mobilenet(),
        3_504_872,
        300_774_272,
        "3.5 M, 300 M",
    )
    for label, block, cfg, params, macs, published in (
        ("CA", "coordatt", {"reduction": 32}, 3_950_648, 306_666_368, "3.95 M, 310 M, top-1 74.3"),
        (
            "SE",
            "se",
            {"reduction": 24, "bias": True},
            3_888_208,
            301_150_208,
            "3.89 M, 300 M, top-1 73.5",
        ),
        ("CBAM", "cbam", {"reduction": 24}, 3_889_808, 302_524_960, "3.89 M, 300 M, top-1 73.6"),
    ):
        recipe = f"`{block}`, {', '.join(f'{k}={v}' for k, v in cfg.items())}, {DEPTHWISE}"
        yield Row(
            f"MobileNetV2 + {label}", recipe, mobilenet(block, **cfg), params, macs, published
        )


def _whole() -> Iterator[Row]:
    for size, dim, params, published in (
        ("b0", 16, 3_410_008, ""),
        ("b1", 16, 9_102_024, "9.1 M"),
        ("b2", 32, 24_330_712, "24 M"),
        ("b3", 32, 48_646_056, "49 M"),
    ):
        build = swapped(f"efficientvit_{size}", "LiteMLA", "relu_linear", dim=dim)
        recipe = f"timm, `relu_linear`, dim={dim}, instead of each LiteMLA"
        yield Row(f"EfficientViT-{size.upper()}", recipe, build, params, None, published)
    for size, params, published in (
        ("xs", 3_475_360, "3.5 M"),
        ("s", 6_092_128, "6.1 M"),
        ("l1", 12_057_920, "12.1 M"),
        ("l3", 28_494_736, "28.5 M"),
    ):
        build = swapped(f"swiftformer_{size}", "EfficientAdditiveAttention", "swiftformer")
        recipe = "timm, `swiftformer` instead of each EfficientAdditiveAttention"
        yield Row(f"SwiftFormer-{size.upper()}", recipe, build, params, None, published)
    for label, size, heads, where, side, agents, params, published in (
        ("T", "tiny", 3, "blocks.*.attn", 224, 49, 6_015_640, "6.0 M"),
        ("S", "small", 6, "blocks.*.attn", 224, 49, 22_647_112, "22.7 M"),
        ("S 448", "small", 6, "blocks.*.attn", 448, 49, 23_070_472, "23.1 M"),
        ("B", "base", 12, "blocks.[0-3].attn", 224, 81, 87_204_904, "87.2 M"),
    ):
        places = "the first four attentions" if label == "B" else "each attention"
        recipe = f"timm's DeiT, `agent`, variant='deit', agents={agents}, instead of {places}"
        build = agent_deit(size, heads, where, side, agents)
        yield Row(f"Agent-DeiT-{label}", recipe, build, params, None, published)


def _series() -> Iterator[Row]:
    for label, heads, d_model, mlp, params in (
        ("9k", 8, None, (128,), 8_832),
        ("34k", 16, None, (128, 128), 33_920),
        ("112k", 16, 256, (256, 128), 112_000),
        ("288k", 32, 512, (512, 128), 288_640),
        ("740k", 32, 1024, (1024, 256, 128), 740_480),
        ("3840k", 64, 2048, (2048, 1024, 256, 128), 3_808_896),
    ):
        config = {"c": 128, "heads": heads, "d_k": 8, "d_model": d_model, "mlp": mlp}
        recipe = f"`ltae`, {', '.join(f'{k}={v}' for k, v in config.items())}, variant='original'"
        build = alone("ltae", **config, variant="original")
        yield Row(f"L-TAE {label}", recipe, build, params, None, label)
    yield Row("L-TAE of U-TAE", "`ltae`, c=128", alone("ltae", c=128), 83_200, None)
    config = {"c": 512, "bottleneck": 128}
    yield Row(
        "Pyraformer, CSCM",
        "`pyraformer_cscm`, c=512",
        alone("pyraformer_cscm", **config),
        330_496,
        None,
    )
    build = alone("pyraformer", **config, heads=4, d_k=128, d_v=128, n_layers=4)
    recipe = "`pyraformer`, c=512, 4 heads of 128, 4 layers"
    yield Row("Pyraformer, encoder", recipe, build, 330_496 + 4 * 1_576_448, None)


def line(row: Row, found: tuple[int, int | None]) -> str:
    """A row of the table, with what was counted."""
    params, macs = found
    numbers = (params, row.params, macs, row.macs)
    cells = (row.name, row.recipe, *(f"{n:,}" if n is not None else "" for n in numbers))
    return f"| {' | '.join((*cells, row.published))} |\n"


if __name__ == "__main__":
    lines = [line(row, counted(row.build(), row.macs is not None)) for row in rows()]
    PAGE.write_text(HEAD + "".join(lines))
    print(f"wrote {PAGE}")
