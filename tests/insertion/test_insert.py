"""`attnzoo.insert` and `remove`: networks take a block by pattern, and are then as they were."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import attnzoo
from attnzoo.insertion.host import Inserted, enclosed
from attnzoo.insertion.source import source_of
from attnzoo.registry import find
from attnzoo.testing.inputs import randomize_parameters

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SERIES = torch.randn(2, 24, 7, generator=torch.Generator().manual_seed(0))


class ConvForecaster(nn.Module):
    """Keeps (B, C, T) between its layers."""

    def __init__(self, c: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(7, c, 3, padding=1), nn.ReLU(), nn.Conv1d(c, c, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(24 * c, 6 * 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x.mT).flatten(1)).view(-1, 6, 7)


class Forecaster(nn.Module):
    """A Transformer over (B, T, C)."""

    def __init__(self, c: int = 32) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(c, 4, 64, dropout=0.0, batch_first=True)
        self.embed = nn.Linear(7, c)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(c, 7)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(self.embed(x), src_key_padding_mask=mask))


class Tiny(nn.Module):
    """What goes wrong somewhere: shared, repeated, idle and many-valued modules."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.two = nn.Conv2d(3, 16, 3, padding=1)
        self.twice = nn.Conv2d(16, 16, 1)
        self.idle = nn.Conv2d(16, 16, 1)
        self.mha = nn.MultiheadAttention(16, 2, batch_first=True)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.twice(self.twice(self.one(x) + self.two(x))))
        tokens = x.flatten(2).mT
        return self.mha(tokens, tokens, tokens)[0]


def resnet(train: bool = False) -> nn.Module:
    layers = torchvision.models.resnet.BasicBlock, (2, 1, 1, 1)
    return torchvision.models.ResNet(*layers, num_classes=5, width_per_group=64).train(train)


def convnext() -> nn.Module:
    stages = [
        torchvision.models.convnext.CNBlockConfig(*sizes) for sizes in ((24, 48, 1), (48, None, 1))
    ]
    return torchvision.models.ConvNeXt(stages, num_classes=5)


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=5)


def moved(net: nn.Module) -> nn.Module:
    """No zeroed head or norm may hide what goes on before it."""
    randomize_parameters(net)
    return net.eval()


VIT = {
    "image_size": 64,
    "patch_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 48,
    "mlp_dim": 96,
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], str, str, Tensor, dict[str, Any], int]] = {
    "resnet": (resnet, "layer[1-4].*.bn2", "se", IMAGES, {}, 5),
    "mobilenet": (
        lambda: torchvision.models.mobilenet_v2(num_classes=5, width_mult=0.35),
        "features.*.conv.1",
        "coordatt",
        IMAGES,
        {"residual": True},
        17,
    ),
    "convnext, channels last": (
        convnext,
        "features.[13].*.block.5",
        "cbam",
        IMAGES,
        {},
        2,
    ),
    "swin, channels last": (
        swin,
        "features.1.*",
        "triplet",
        IMAGES,
        {},
        2,
    ),
    "vit, tokens": (
        lambda: torchvision.models.VisionTransformer(**VIT, num_classes=5),
        "encoder.layers.*",
        "swiftformer",
        IMAGES,
        {},
        2,
    ),
    "timm byob": (
        lambda: timm.create_model("mobileone_s0", num_classes=5),
        "stages.0.*",
        "se",
        IMAGES,
        {},
        4,
    ),
    "timm edgenext": (
        lambda: timm.create_model("edgenext_xx_small", num_classes=5),
        "stages.?",
        "coordatt",
        IMAGES,
        {"how": "before"},
        4,
    ),
    "conv1d forecaster": (ConvForecaster, "net.[13]", "mamba", SERIES, {}, 2),
    "transformer forecaster": (Forecaster, "encoder.layers.*", "ct_msa", SERIES, {}, 2),
    "inside torch's fused layer": (
        Forecaster,
        "encoder.layers.*.norm2",
        "trend_aware",
        SERIES,
        {},
        2,
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_takes_a_block_and_gives_it_back(case: str) -> None:
    make, where, name, x, keywords, places = NETWORKS[case]
    net = moved(make())
    before, modules = net(x), list(net.named_modules())
    state = {key: value.clone() for key, value in net.state_dict().items()}
    count = sum(p.numel() for p in net.parameters())

    report = attnzoo.insert(net, where, name, example_input=x, **keywords)
    blocks = [m for m in net.modules() if isinstance(m, find(name).cls)]
    assert len(report.placements) == len(blocks) == places
    assert sum(p.numel() for p in net.parameters()) == count + report.parameters
    for parameter in (p for m in blocks for p in m.parameters()):
        nn.init.normal_(parameter, std=0.1)
    after = net(x)
    assert after.shape == before.shape
    assert not torch.allclose(after, before)
    with torch.no_grad():
        torch.testing.assert_close(net(x), after.detach(), atol=1e-5, rtol=1e-4)

    keys = net.state_dict().keys()
    assert state.keys() < keys
    assert keys == {k for k, _ in (*net.named_parameters(), *net.named_buffers())}
    loaded = net.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys
    assert {*loaded.missing_keys} == {k for k in keys - state.keys() if "num_batches" not in k}
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        twin.load_state_dict(net.state_dict())
        assert torch.equal(twin(x), after)

    assert attnzoo.remove(net) is net
    assert list(net.named_modules()) == modules
    assert list(net.state_dict()) == list(state)
    assert torch.equal(net(x), before)


def test_the_run_and_a_dry_run_leave_no_trace() -> None:
    net = resnet(train=True)
    net.layer1.eval()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    flags = {path: module.training for path, module in net.named_modules()}
    modules, random = list(net.named_modules()), torch.get_rng_state()
    report = attnzoo.insert(net, "layer?", "cbam", example_input=IMAGES, dry_run=True)
    assert report.dry_run
    assert torch.equal(torch.get_rng_state(), random)
    assert list(net.named_modules()) == modules
    assert {path: module.training for path, module in net.named_modules()} == flags
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())

    done = attnzoo.insert(net, "layer?", "cbam", example_input=IMAGES)
    assert done.placements == report.placements
    assert all(m.training for m in net.modules() if isinstance(m, find("cbam").cls))
    attnzoo.remove(net)
    assert {path: module.training for path, module in net.named_modules()} == flags


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("how", ["after", "instead"])
def test_training_modes_are_as_before_and_blocks_follow(train: bool, how: Any) -> None:
    net = resnet(train)
    net.layer1.train(not train)
    modes = {path: module.training for path, module in net.named_modules()}
    with pytest.raises(ValueError, match="reduction"):
        attnzoo.insert(net, "layer1.*.conv2", "se", example_input=IMAGES, reduction=999)
    assert {path: module.training for path, module in net.named_modules()} == modes
    attnzoo.insert(net, "layer2.0.conv2", "dia", example_input=IMAGES, how=how)
    place = net.layer2[0].conv2
    added = [place, *place.attnzoo.modules()]
    assert {module.training for module in added} == {train}
    net.train(not train)
    assert {module.training for module in (*added, enclosed(place))} == {not train}
    net.train(train)
    net.layer1.train(not train)
    attnzoo.remove(net)
    assert {path: module.training for path, module in net.named_modules()} == modes


def test_a_module_kept_aside_moves_and_is_cast_with_the_network() -> None:
    net = resnet()
    attnzoo.insert(net, "layer1.1.conv2", "se", example_input=IMAGES, how="instead")
    attnzoo.remove(net.double())
    assert net.layer1[1].conv2.weight.dtype == torch.float64
    attnzoo.insert(net, "layer1.1.conv2", "se", example_input=IMAGES.double(), how="instead")
    attnzoo.remove(net.to("meta"))
    assert net.layer1[1].conv2.weight.is_meta


@pytest.mark.parametrize("nested", [False, True])
def test_remove_lets_encoders_pack_padded_batches_again(nested: bool) -> None:
    net = Forecaster()
    net.encoder.use_nested_tensor = nested
    attributes = dict(vars(net.encoder))
    attnzoo.insert(net, "encoder.layers.0", "mamba", example_input=SERIES, dry_run=True)
    assert net.encoder.use_nested_tensor == nested
    for where in ("encoder.layers.0", "encoder.layers.1.norm2"):
        attnzoo.insert(net, where, "mamba", example_input=SERIES)
        assert not net.encoder.use_nested_tensor
    attnzoo.remove(net)
    assert net.encoder.use_nested_tensor == nested
    assert dict(vars(net.encoder)) == attributes


def test_the_state_dict_keeps_the_versions_of_its_modules() -> None:
    net = resnet()
    versions = dict(net.state_dict()._metadata)
    attnzoo.insert(net, "layer1.*.bn2", "se", example_input=IMAGES)
    attnzoo.insert(net, "layer2", "se", example_input=IMAGES)
    found = net.state_dict()._metadata
    assert {path: found[path] for path in versions} == versions
    assert not any("attnzoo_host" in path for path in found)


class Restless(nn.Module):
    """Draws and counts in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.conv(x + torch.rand_like(x))
        self.last = y.detach().mean((0, 2, 3))
        return y


def test_the_run_restores_what_eval_mode_moves() -> None:
    net, random = Restless(), torch.get_rng_state()
    attnzoo.insert(net, "conv", "se", example_input=IMAGES, dry_run=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert not net.calls
    assert not net.last.any()


def test_the_report_counts_exactly() -> None:
    net = resnet()
    report = attnzoo.insert(net, "layer[1-4].*.bn2", "cbam", example_input=IMAGES, reduction=8)
    for place in report.placements:
        _, c, h, w = place.shape
        form = find("cbam").closed_form(attnzoo.InputSize(2, 1, h, w), c=c, reduction=8)
        assert form is not None
        assert (place.parameters, place.macs) == (form.params, form.macs)
        assert place.config == {"c": c, "reduction": 8}
    with FlopCounterMode(display=False) as counter:
        resnet()(IMAGES)
    assert report.network_macs == counter.get_total_flops() // 2 // len(IMAGES)
    text = str(report)
    assert "cbam went to 5 places" in text
    assert f"{report.parameters:+,}" in text
    assert "layer4.0.bn2" in text


class Recurrent(nn.Module):
    """A forecaster that passes a view of a parameter to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, 1, 32))
        self.embed, self.start = nn.Linear(7, 32), nn.Identity()
        self.rnn = nn.LSTM(32, 16, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> Tensor:
        start = self.start(self.first.expand(len(x), -1, -1))
        return self.head(self.rnn(torch.cat([start, self.embed(x)], 1))[0][:, 1:])


@pytest.mark.parametrize(
    ("make", "macs"),
    [
        # embedding and head, 24 steps; two directions of two layers of four gates, 25 steps
        (Recurrent, 24 * 2 * 7 * 32 + 25 * 4 * 4 * 16 * (32 + 16)),
        # per layer: four projections, scores and sums, two of the feed-forward
        (Forecaster, 24 * (2 * 7 * 32 + 2 * (4 * 32 * 32 + 2 * 24 * 32 + 2 * 32 * 64))),
    ],
)
def test_layers_of_one_operator_are_counted(make: Callable[[], nn.Module], macs: int) -> None:
    report = attnzoo.insert(make(), "head", "mamba", example_input=SERIES, dry_run=True)
    assert report.network_macs == macs
    assert report.uncounted == ()


class Unknown(nn.Module):
    """A layer of an operator that nobody counts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Bilinear(7, 7, 5), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x, x))


def test_operators_that_nobody_counts_are_named() -> None:
    report = attnzoo.insert(Unknown(), "head", "mamba", example_input=SERIES, dry_run=True)
    assert report.network_macs == 24 * 5 * 3
    assert report.uncounted == ("aten::_trilinear",)
    assert "of the network's operators not counted: aten::_trilinear" in str(report)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("how", ["after", "before"])
def test_zero_init_starts_as_the_network_and_learns(how: Any, residual: bool) -> None:
    net = resnet()
    before = net(IMAGES)
    report = attnzoo.insert(
        net,
        "layer[34]",
        "se",
        example_input=IMAGES,
        how=how,
        zero_init=True,
        residual=residual,
    )
    assert torch.equal(net(IMAGES), before)
    keys = [key for key in net.state_dict() if "attnzoo" not in key]
    net.load_state_dict(net.state_dict())
    assert keys == [*attnzoo.remove(copy.deepcopy(net)).state_dict()]
    gains = [p for name, p in net.named_parameters() if name.endswith("attnzoo_gain")]
    blocks = [p for name, p in net.named_parameters() if ".attnzoo." in name]
    assert len(gains) == 2
    assert report.parameters == sum(p.numel() for p in (*gains, *blocks))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        net(IMAGES).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in gains)
        assert all(bool(p.grad.any()) == (step > 0) for p in blocks)  # type: ignore[union-attr]
        optimizer.step()

    at_one = [g.data.fill_(1.0) for g in gains]
    assert len(at_one) == 2
    place = net.layer3
    x = torch.randn(2, 128 if how == "before" else 256, 4, 4)
    block, host = place.attnzoo, enclosed(place)
    layers = nn.Sequential(*host)  # the delegated items are the layers
    if how == "before":
        wanted = layers(x + block(x) if residual else block(x))
        torch.testing.assert_close(place(x), wanted)
    else:
        y = layers(torch.randn(2, 128, 4, 4).fill_(0.5))
        wanted = y + block(y) if residual else block(y)
        torch.testing.assert_close(place(torch.full((2, 128, 4, 4), 0.5)), wanted)


def test_insertions_nest_and_all_come_out() -> None:
    net = moved(resnet())
    before, modules = net(IMAGES), list(net.named_modules())
    for name in ("se", "coordatt"):
        attnzoo.insert(net, "layer1.*.bn2", name, example_input=IMAGES)
    attnzoo.insert(net, "layer1", "cbam", example_input=IMAGES)
    attnzoo.insert(net, "layer1.*.conv1", "triplet", example_input=IMAGES, how="before")
    keys = net.state_dict().keys()
    assert "layer1.0.bn2.attnzoo.fc1.weight" in keys
    assert "layer1.0.bn2.attnzoo2.conv_h.weight" in keys
    assert "layer1.attnzoo.fc1.weight" in keys
    twin = moved(resnet())
    for name in ("se", "coordatt"):
        attnzoo.insert(twin, "layer1.*.bn2", name, example_input=IMAGES)
    attnzoo.insert(twin, "layer1", "cbam", example_input=IMAGES)
    attnzoo.insert(twin, "layer1.*.conv1", "triplet", example_input=IMAGES, how="before")
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(IMAGES), net(IMAGES))
    attnzoo.remove(net)
    assert list(net.named_modules()) == modules
    assert torch.equal(net(IMAGES), before)


def test_instead_takes_the_module_out_until_remove() -> None:
    net = moved(resnet())
    before, state = net(IMAGES), {k: v.clone() for k, v in net.state_dict().items()}
    count = sum(p.numel() for p in net.parameters())
    report = attnzoo.insert(
        net, "layer1.1.conv2", "sknet", example_input=IMAGES, how="instead", groups=32
    )
    assert "layer1.1.conv2.weight" not in net.state_dict()
    assert sum(p.numel() for p in net.parameters()) == count + report.parameters
    form = find("sknet").closed_form(attnzoo.InputSize(2, 1, 16, 16), c=64)
    assert form is not None
    assert report.macs == form.macs - 9 * 64 * 64 * 16 * 16
    loaded = net.load_state_dict(state, strict=False)
    assert not loaded.unexpected_keys
    net.double().float()
    attnzoo.remove(net)
    assert net.state_dict().keys() == state.keys()
    assert torch.equal(net(IMAGES), before)


def test_the_place_reads_and_writes_as_the_module() -> None:
    net = resnet()
    norm, stage = net.layer1[0].bn2, net.layer1
    attnzoo.insert(net, "layer1.*.bn2", "se", example_input=IMAGES)
    attnzoo.insert(net, "layer1", "se", example_input=IMAGES)
    place = net.layer1[0].bn2
    assert isinstance(place, Inserted)
    assert place.weight is norm.weight
    place.eps = 1e-3
    assert norm.eps == 1e-3
    assert len(net.layer1) == 2
    first, last = net.layer1  # called one by one, they take the block along
    assert first is stage[0]
    assert enclosed(last) is stage[1]
    assert net.layer1[0] is stage[0]
    assert enclosed(net.layer1[-1]) is stage[-1]
    assert not hasattr(place, "nothing")
    with pytest.raises(AttributeError, match="nothing"):
        place.nothing  # noqa: B018


def test_sync_batch_norm_and_functional_calls_find_their_way() -> None:
    net = moved(resnet())
    attnzoo.insert(net, "layer[12].*.bn2", "se", example_input=IMAGES)
    wanted = net(IMAGES)
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert torch.equal(torch.func.functional_call(net, weights, (IMAGES,)), wanted)
    zeros = {name: torch.zeros_like(p) for name, p in weights.items()}
    assert not torch.func.functional_call(net, zeros, (IMAGES,)).any()
    assert torch.equal(net(IMAGES), wanted)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert isinstance(enclosed(synced.layer1[0].bn2), nn.SyncBatchNorm)
    assert torch.equal(synced(IMAGES), wanted)


@pytest.mark.filterwarnings("ignore:Unable to find the path of the module")  # of torch 2.6
@pytest.mark.parametrize(
    "case",
    [
        pytest.param("resnet", marks=pytest.mark.slow),
        "conv1d forecaster",
        "inside torch's fused layer",
    ],
)
def test_compiles_and_exports(case: str) -> None:
    make, where, name, x, keywords, _ = NETWORKS[case]
    net = moved(make())
    name = {"mamba": "dilated_inception"}.get(name, name)
    attnzoo.insert(net, where, name, example_input=x, zero_init=True, **keywords)
    for key, parameter in net.named_parameters():
        if key.endswith("_gain"):
            nn.init.constant_(parameter, 0.5)
    wanted = net(x)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), wanted)
    program = torch.export.export(net, (x,), strict=False)
    assert program.state_dict.keys() == net.state_dict().keys()
    torch.testing.assert_close(program.module()(x), wanted)


@pytest.mark.parametrize(
    ("where", "name", "words"),
    [
        ("layer9.*", "se", "matches none.*nearest paths are 'layer"),
        (re.compile("layer9"), "se", "matches none.*nearest paths"),
        (lambda path, module: False, "se", "matches none"),
        ("", "se", "the model itself"),
        (re.compile(r"layer1(\.0)?"), "se", "'layer1.0' and 'layer1', which it is inside of"),
        ("fc", "se", r"'fc' \(Linear\).*shape \(2, 5\).*takes \(B, C, H, W\)"),
        ("layer1.*.relu", "se", "'layer1.0.relu' .*called 2 times"),
        ("layer1", "mamba", "channel_axis=1"),
        ("layer1", "dtm", "takes one tensor"),
        ("layer1", "senet", "did you mean"),
    ],
)
def test_refusals_on_a_resnet(where: Any, name: str, words: str) -> None:
    refused(resnet(), where, name, words, IMAGES)


@pytest.mark.parametrize(
    ("where", "name", "keywords", "words"),
    [
        ("one", "se", {}, "one module at 2 paths, 'one', 'two'"),
        ("twice", "se", {}, "called 2 times"),
        ("idle", "se", {}, "called 0 times"),
        ("mha", "mamba", {}, "returns a tuple"),
        ("body", "se", {"reduction": 17}, "'body'.*does not take: reduction=17 leaves no channel"),
        ("body", "danet", {"head": True, "reduction": 2}, "makes .* of .*, and the network goes"),
        ("body", "se", {"channel_axis": 4}, "channel_axis=4 is no axis"),
        ("body", "se", {"how": "behind"}, "how='behind' must be one of"),
        ("body", "se", {"how": "instead", "zero_init": True}, "zero_init=True keeps"),
        ("body", "swiftformer", {"layout": "sequence"}, r"map \(B, C, H, W\)"),
    ],
)
def test_refusals_elsewhere(where: str, name: str, keywords: dict[str, Any], words: str) -> None:
    refused(Tiny(), where, name, words, torch.randn(2, 3, 8, 8), **keywords)


def refused(net: nn.Module, where: Any, name: str, words: str, x: Any, **keywords: Any) -> None:
    modules = list(net.named_modules())
    with pytest.raises(ValueError, match=f"(?s){words}"):
        attnzoo.insert(net, where, name, example_input=x, **keywords)
    assert list(net.named_modules()) == modules


def test_wrong_types_and_inputs_are_refused() -> None:
    net = resnet()
    refused(
        net,
        "layer1",
        "se",
        "does not take example_input of shape .*2, 4, 8, 8",
        torch.ones(2, 4, 8, 8),
    )
    for where, keywords, words in (
        (3, {}, "where=3 must be"),
        (nn.Conv2d, {}, "where=.*Conv2d.* must be .*isinstance"),
        (re.compile(b"layer1"), {}, "re.Pattern of str"),
        ("layer1", {"c": 64}, "c=64 is not for insert"),
        ("layer1", {"device": "cpu"}, "device='cpu' is not for insert"),
        ("layer1", {"residual": "no"}, "residual='no' must be True or False"),
        ("layer1", {"zero_init": 1}, "zero_init=1 must be True or False"),
        ("layer1", {"dry_run": None}, "dry_run=None must be True or False"),
        ("layer1", {"example_input": 3}, "example_input must be"),
        ("layer1", {"reduktion": 4}, "its signature is"),
        ("layer1", {"channel_axis": 1.0}, "channel_axis=1.0"),
    ):
        with pytest.raises(TypeError, match=words):
            attnzoo.insert(net, where, "se", **{"example_input": IMAGES, **keywords})  # type: ignore[arg-type]
    for call in (
        lambda: attnzoo.insert(3, "a", "se", example_input=IMAGES),  # type: ignore[arg-type]
        lambda: attnzoo.remove(3),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"must be an nn\.Module"):
            call()


def test_patterns_of_every_kind() -> None:
    net = resnet()

    def paths(where: Any) -> list[str]:
        report = attnzoo.insert(net, where, "se", example_input=IMAGES, dry_run=True)
        return [place.path for place in report.placements]

    assert paths("*.bn2") == paths(re.compile(r"layer\d\.\d\.bn2"))
    assert paths("layer1.*") == ["layer1.0", "layer1.1"]
    assert paths(lambda path, module: isinstance(module, nn.Sequential) and "." not in path) == [
        f"layer{i}" for i in (1, 2, 3, 4)
    ]


def test_inputs_by_position_and_by_keyword() -> None:
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[0, 20:] = True
    found = [
        attnzoo.insert(Forecaster(), "encoder.layers.1", "mamba", example_input=example).placements
        for example in (SERIES, (SERIES, mask), {"x": SERIES, "mask": mask})
    ]
    assert found[0] == found[1] == found[2]


def test_an_inserted_layer_sees_no_nested_tensor() -> None:
    net = Forecaster().eval()
    attnzoo.insert(net, "encoder.layers.1", "mamba", example_input=SERIES)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[0, 20:] = True
    with torch.no_grad():
        fused = net(SERIES, mask)
    torch.testing.assert_close(fused[1], net(SERIES, mask)[1].detach())


def refused_by_insert(name: str) -> bool:
    """Whether the block takes more than one tensor."""
    try:
        source_of(name, {})
    except ValueError:
        return True
    return False


def test_no_keyword_of_insert_is_an_argument_of_a_block() -> None:
    ours = set(attnzoo.insert.__kwdefaults__) | {"model", "where", "name", "example_input"}
    both = {
        (name, key)
        for name in attnzoo.names()
        for key in ours & set(find(name).signature.parameters)
        if not refused_by_insert(name)
    }
    assert both == {("m_gtu", "residual")}, "the documents name this one"


def test_half_precision_blocks_follow_the_network() -> None:
    net = resnet().bfloat16()
    attnzoo.insert(net, "layer4", "se", example_input=IMAGES.bfloat16(), zero_init=True)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert net(IMAGES.bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ResNet", "ConvNext", "ViT"])
def test_hugging_face_backbones(kind: str) -> None:
    import transformers

    sizes = {
        "ResNet": {
            "embedding_size": 16,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        "ConvNext": {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2},
        "ViT": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "image_size": 64,
        },
    }[kind]
    config = getattr(transformers, f"{kind}Config")(**sizes)
    net = moved(getattr(transformers, f"{kind}Model")(config))
    where = re.compile(r"(encoder\.)?(stages\.\d|(layers?|layer)\.\d)")
    before = net(pixel_values=IMAGES).last_hidden_state
    name = "swiftformer" if kind == "ViT" else "cbam"
    report = attnzoo.insert(net, where, name, example_input={"pixel_values": IMAGES})
    assert len(report.placements) == 2
    after = net(pixel_values=IMAGES).last_hidden_state
    assert not torch.allclose(after, before)
    attnzoo.remove(net)
    assert torch.equal(net(pixel_values=IMAGES).last_hidden_state, before)
