"""Other people's tools on networks with blocks: no block is lost, moved or left out in silence."""

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torchvision
from timm.models._features_fx import FeatureGraphNet
from timm.utils.model import freeze_batch_norm_2d, reparameterize_model
from torch import Tensor, fx, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torchvision.models.feature_extraction import create_feature_extractor

import attnzoo
from attnzoo.insertion.host import Inserted
from attnzoo.testing.inputs import randomize_parameters

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Pair(nn.Module):
    """A convolution and its norm."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class ConvNorm(Pair):
    """Folds into one layer, as timm's do: `fuse` returns what is to stand in its place."""

    def fuse(self) -> nn.Module:
        return fuse_conv_bn_eval(self.conv, self.bn)


class Deployable(Pair):
    """Folds in place, and drops what it folded."""

    def reparameterize(self) -> None:
        conv, bn = self.conv, self.bn
        scale = bn.weight / (bn.running_var + 1e-5).sqrt()
        weight, bias = conv.weight * scale[:, None, None, None], bn.bias - bn.running_mean * scale
        del self.conv, self.bn
        self.conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        self.conv.weight.data, self.conv.bias.data = weight.detach(), bias.detach()  # type: ignore[union-attr]
        self.bn = nn.Identity()


class Whole(nn.Module):
    """Folds the layers of its children, as ultralytics' networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16)
        self.body = nn.Sequential(Deployable(16, 16), nn.ReLU(), ConvNorm(16, 16))
        self.head = nn.Linear(16, 5)

    def fuse(self) -> nn.Module:
        for module in self.modules():
            if isinstance(module, Pair):
                conv = fuse_conv_bn_eval(module.conv, module.bn)
                module.conv, module.bn = conv, nn.Identity()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def whole() -> nn.Module:
    return settled(Whole())


def settled(net: nn.Module) -> nn.Module:
    """A network in eval mode, none of whose norms is the identity."""
    generator = torch.Generator().manual_seed(3)
    randomize_parameters(net)
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
    return net.eval()


def resnet() -> nn.Module:
    layers = torchvision.models.resnet.BasicBlock, (1, 1, 1, 1)
    return settled(torchvision.models.ResNet(*layers, num_classes=5))


def places(net: nn.Module) -> int:
    return sum(isinstance(module, Inserted) for module in net.modules())


def insert(net: nn.Module, where: Any, name: str = "se", **options: Any) -> Tensor:
    """The output with the blocks, which differs from that without."""
    before = net(X)
    options = {"reduction": 4, **options}
    if options["reduction"] is None:
        del options["reduction"]
    attnzoo.insert(net, where, name, example_input=X, **options)
    for key, parameter in net.named_parameters():
        if "attnzoo" in key:
            nn.init.normal_(parameter, std=0.3)
    after = net(X).detach()
    assert not torch.allclose(before, after)
    return after


def same(found: Tensor, wanted: Tensor) -> None:
    scale = max(1.0, wanted.abs().max().item())
    torch.testing.assert_close(found, wanted, atol=1e-4 * scale, rtol=1e-4)


FOLDED = ["stem", "body", "body.0", "body.1", "body.2"]
UNFOLDABLE = ["stem.conv", "stem.bn", "body.0.conv", "body.0.bn", "body.2.bn"]


@pytest.mark.parametrize("how", ["after", "before"])
@pytest.mark.parametrize("where", FOLDED)
def test_what_holds_the_block_is_folded_inside(where: str, how: str) -> None:
    net = whole()
    options = {"reduction": 1} if (where, how) == ("stem", "before") else {}
    wanted = insert(net, where, how=how, **options)
    folded = reparameterize_model(net)
    assert places(folded) == places(net) == 1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    same(folded(X), wanted)


@pytest.mark.parametrize("where", UNFOLDABLE)
@pytest.mark.parametrize("tool", [reparameterize_model, lambda net: net.fuse()])
def test_folding_past_a_block_is_refused(where: str, tool: Callable[..., Any]) -> None:
    net = whole()
    wanted = insert(net, where)
    with pytest.raises(ValueError, match=r"(fuse|reparameterize)\(\) folds .*attnzoo\.remove"):
        tool(net)
    assert torch.equal(net(X), wanted), "a refusal changes nothing"
    attnzoo.remove(net)
    assert not any("fuse" in vars(m) or "reparameterize" in vars(m) for m in net.modules())
    same(reparameterize_model(net)(X), net(X))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "inside", "between"),
    [
        ("levit_128s", 224, "stem.conv3", "stem.conv2.bn"),
        ("fastvit_t8", 64, "stages.0.blocks.0.token_mixer", "stem.0.conv_kxk.0.conv"),
        ("repvit_m1", 64, "stages.0.blocks.0.token_mixer", "stages.0.blocks.0.token_mixer.conv"),
        ("mobileone_s0", 64, "stages.0.0", "stages.1.0.conv_kxk.0.bn"),
    ],
)
def test_networks_of_timm_fold(model: str, size: int, inside: str, between: str) -> None:
    net, x = settled(timm.create_model(model, num_classes=5)), torch.randn(1, 3, size, size)
    attnzoo.insert(net, inside, "se", example_input=x, reduction=4)
    folded = reparameterize_model(net)
    assert places(folded) == 1
    torch.testing.assert_close(folded(x), net(x), atol=1e-3, rtol=1e-3)
    attnzoo.insert(net, between, "se", example_input=x, reduction=4)
    with pytest.raises(ValueError, match="does not take the blocks inside"):
        reparameterize_model(net)


def test_a_child_with_blocks_is_not_replaced_without_them() -> None:
    net = whole()
    wanted = insert(net, "body.2.bn")
    for change in (
        lambda: setattr(net, "body", nn.Identity()),
        lambda: setattr(net.body[2], "bn", nn.BatchNorm2d(16)),
        lambda: setattr(net, "body", None),
        lambda: net.body.add_module("2", nn.Identity()),
    ):
        with pytest.raises(ValueError, match=r"an inserted block, which its replacement"):
            change()
    assert torch.equal(net(X), wanted)
    net.body = nn.Sequential(net.body, nn.Identity())  # a wrapper keeps it
    net.body[0][2] = copy.deepcopy(net.body[0][2])
    assert torch.equal(net(X), wanted)
    del net.body
    net.body = nn.Identity()


def test_adapters_of_peft_are_refused_where_it_would_freeze_them() -> None:
    """tests/blocks/peft_adapters.py does this with peft itself."""
    adapter = type("Conv2d", (nn.Conv2d,), {"__module__": "peft.tuners.lora.layer"})(16, 16, 1)
    net = whole()
    wanted = insert(net, "body.2.bn")
    with pytest.raises(ValueError, match="Add the adapters first and insert the blocks afterwards"):
        net.body[2].bn.attnzoo_host = adapter
    assert torch.equal(net(X), wanted)
    net.body[2].conv = adapter  # of another layer


@pytest.mark.parametrize("train", [False, True])
def test_folding_by_hand_is_refused(train: bool) -> None:
    net = whole()
    insert(net, "stem.bn")
    with pytest.raises(ValueError, match="attnzoo_host"):
        net.stem.conv = fuse_conv_bn_eval(net.stem.conv, net.stem.bn)
    attnzoo.remove(net)
    insert(net, "stem.conv")
    with pytest.raises(ValueError, match="attnzoo_host"):
        net.stem.conv = fuse_conv_bn_eval(net.stem.conv, net.stem.bn)


def test_methods_that_run_the_module_alone_are_refused() -> None:
    class Body(nn.Sequential):
        def forward_features(self, x: Tensor) -> Tensor:
            return self[0](x)

    net = nn.Sequential(nn.Conv2d(3, 16, 1), Body(nn.Conv2d(16, 16, 1)))
    insert(net, "1")
    with pytest.raises(
        ValueError, match=r"forward_features\(\) runs Body without a block after it"
    ):
        net[1].forward_features(X)


def test_eager_quantization_keeps_the_blocks() -> None:
    net = whole()
    insert(net, "stem", "eca", reduction=None)
    insert(net, "body.1", "triplet", how="before", reduction=None)
    wanted = net(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
        assert places(quantized) == 2
        assert torch.nn.functional.cosine_similarity(quantized(X), wanted).min() > 0.99
        fused = torch.ao.quantization.fuse_modules(net, [["stem.conv", "stem.bn"]])
        assert places(fused) == 2
        same(fused(X), wanted)
        insert(net, "body.2.bn", "simam", reduction=None)
        with pytest.raises((AssertionError, NotImplementedError), match="Inserted"):
            torch.ao.quantization.fuse_modules(net, [["body.2.conv", "body.2.bn"]])


@pytest.mark.parametrize("convert", [nn.SyncBatchNorm.convert_sync_batchnorm, freeze_batch_norm_2d])
def test_norms_are_converted_inside(convert: Callable[..., Any]) -> None:
    net = resnet()
    wanted = insert(net, "layer[12].*.bn2")
    converted = convert(net)
    assert not any(type(module) is nn.BatchNorm2d for module in converted.modules())
    assert places(converted) == 2
    same(converted(X), wanted)
    assert "layer1.0.bn2.weight" in dict(converted.named_parameters()) | dict(
        converted.named_buffers()
    )


class LoRA(nn.Module):
    """A layer with a low-rank update."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, c = base, base.weight.shape
        self.down = nn.Conv2d(c[1], 2, base.kernel_size, base.stride, base.padding, bias=False)
        self.up = nn.Conv2d(2, c[0], 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def by_path(net: nn.Module) -> None:
    for path, module in [*net.named_modules()]:
        if isinstance(module, nn.Conv2d) and ".attnzoo." not in path:
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, LoRA(module))


def by_children(net: nn.Module) -> None:
    for name, module in net.named_children():
        if isinstance(module, nn.Conv2d):
            setattr(net, name, LoRA(module))
        else:
            by_children(module)


@pytest.mark.parametrize("wrap", [by_path, by_children])
def test_wrappers_of_layers_go_inside(wrap: Callable[..., Any]) -> None:
    net = resnet()
    insert(net, "layer[12].*.conv2")
    wrap(net)
    assert places(net) == 2
    assert isinstance(net.layer1[0].conv2.attnzoo_host, LoRA)
    net(X).sum().backward()
    ups = [p for name, p in net.named_parameters() if name.endswith("up.weight")]
    assert len(ups) == 12
    assert all(p.grad is not None and p.grad.any() for p in ups)


def test_reparametrizations_act_or_are_refused() -> None:
    net = resnet()
    wanted = insert(net, "layer1.*.conv2")
    place = net.layer1[0].conv2
    with pytest.raises(ValueError, match=r"'weight' belongs to Conv2d.*attnzoo_host"):
        parametrizations.weight_norm(place)
    assert torch.equal(net(X), wanted)
    parametrizations.weight_norm(place.attnzoo_host)
    same(net(X), wanted)
    prune.random_unstructured(net.layer2[0].conv2, "weight", 0.5)
    insert(net, "layer3.*.conv2")
    wanted = net(X)
    prune.random_unstructured(net.layer3[0].conv2, "weight", 0.5)
    assert not torch.allclose(net(X), wanted)


def test_tensors_and_modules_are_found_by_name() -> None:
    net = resnet()
    net.layer1[0].bn2.register_buffer("scratch", torch.zeros(3), persistent=False)
    insert(net, "layer1.*.bn2")
    insert(net, "layer1", "cbam", zero_init=True)
    insert(net, "layer1", how="before")
    insert(net, "layer2.0.conv2", how="instead", name="sknet", groups=1)
    assert net.get_buffer("layer1.0.bn2.running_mean") is net.layer1[0].bn2.running_mean
    assert net.get_submodule("layer1.0.conv1") is net.layer1[0].conv1
    for name, parameter in net.named_parameters():
        assert net.get_parameter(name) is parameter, name
    for name, buffer in net.named_buffers():
        assert net.get_buffer(name) is buffer, name
    for name, module in net.named_modules():
        assert net.get_submodule(name) is module, name
    own = [p for m in net.modules() for p in m.parameters(recurse=False)]
    assert {*map(id, own)} == {*map(id, net.parameters())}
    assert len(own) == len([*net.parameters()])
    assert "layer1.0.bn2.scratch" not in net.state_dict()
    listed = {name for name, _ in (*net.named_parameters(), *net.named_buffers())}
    assert listed == {*net.state_dict(), "layer1.0.bn2.scratch"}
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(X), net(X))


class Biased(nn.Module):
    """Attention biases in a cache that no state dict holds, as LeViT's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.register_buffer("index", torch.arange(8), persistent=False)
        self.register_buffer("kept", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.kept[self.index][:, None, None]


@pytest.mark.filterwarnings("ignore:Unable to find the path of the module")  # of torch 2.6
@pytest.mark.parametrize("strict", [False, True])
def test_networks_with_buffers_outside_of_the_state_dict_are_exported(strict: bool) -> None:
    net = nn.Sequential(Biased(), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    wanted = insert(net, "0")
    program = torch.export.export(net, (X,), strict=strict)
    assert program.state_dict.keys() == net.state_dict().keys()
    same(program.module()(X), wanted)


def with_blocks() -> tuple[nn.Module, Tensor]:
    net = resnet()
    insert(net, "layer1.*.bn2")
    insert(net, "layer2", "cbam", zero_init=True)
    insert(net, "layer3", "coordatt", how="before")
    return net, insert(net, "layer4.0.conv2", "sknet", how="instead", groups=1)


def test_symbolic_traces_go_through_the_places() -> None:
    net, wanted = with_blocks()
    traced = fx.symbolic_trace(net)
    same(traced(X), wanted)
    targets = [node.target for node in traced.graph.nodes]
    assert "layer1.0.bn2.attnzoo_host" in targets
    assert "layer1.0.bn2.attnzoo" in targets
    fused = fuse(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.layer1.modules())
    same(fused(X), wanted)
    names = {"layer2": "stage", "layer3.0.conv1": "inside"}
    calls: list[tuple[str, Tensor]] = []
    for path, name in names.items():
        net.get_submodule(path).register_forward_hook(
            lambda _, __, out, name=name: calls.append((name, out))
        )
    net(X)
    seen = dict(calls)  # the trace calls the hooks too
    features = create_feature_extractor(net, return_nodes=names)(X)
    assert features.keys() == seen.keys()
    for key in seen:
        same(features[key], seen[key].detach())


def test_timms_feature_graphs_see_the_blocks() -> None:
    net = settled(timm.create_model("resnet10t", num_classes=5))
    insert(net, "layer1", "cbam")
    seen: list[Tensor] = []
    net.layer1.register_forward_hook(lambda _, __, out: seen.append(out))
    net(X)
    assert torch.equal(FeatureGraphNet(net, out_indices=(1,))(X)[0], seen[0])


def test_jit_traces_and_refuses_scripts() -> None:
    net, wanted = with_blocks()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same(torch.jit.trace(net, X)(X), wanted)
        with pytest.raises(ValueError, match=r"cannot compile .*torch\.jit\.trace"):
            torch.jit.script(net)


def test_items_called_one_by_one_take_the_block_along() -> None:
    """Gradient checkpointing of timm and torch calls the layers of a sequence, not the sequence."""
    for how in ("after", "before"):
        net = timm.create_model("resnet10t", num_classes=5).eval()
        options = {"zero_init": True} if how == "after" else {}
        wanted = insert(net, "layer[12]", how=how, **options)
        net.set_grad_checkpointing()
        found = net(X)
        same(found, wanted)
        found.sum().backward()
        assert all(p.grad is not None for name, p in net.named_parameters() if "attnzoo" in name)
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    same(checkpoint(net.layer1, x, use_reentrant=False), net.layer1(x))


@pytest.mark.parametrize(
    "options",
    [{}, {"how": "before"}, {"zero_init": True}, {"residual": True, "how": "before"}],
    ids=str,
)
def test_parts_of_a_sequence_take_the_block_along(options: dict[str, Any]) -> None:
    """A backbone is cut into children, items and slices, and joined again."""
    net = resnet()
    repeated = nn.ReLU()
    net.layer1 = nn.Sequential(repeated, net.layer1[0], repeated)
    wanted = insert(net, "layer1", shared=True, **options)
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
    rest = nn.Sequential(net.layer2, net.layer3, net.layer4, net.avgpool, nn.Flatten(), net.fc)
    x, place, last = stem(X), net.layer1, len(net.layer1)
    same(nn.Sequential(*[*net.children()][:-1], nn.Flatten(), net.fc)(X), wanted)
    same(rest(nn.Sequential(*[place[i] for i in range(last)])(x)), wanted)
    same(rest(nn.Sequential(*[place[i - last] for i in range(last)])(x)), wanted)
    same(rest(place[1:](place[:1](x))), wanted)
    same((place + rest)(x), wanted)
    same(rest(checkpoint_sequential(place, 2, x, use_reentrant=False)), wanted)
    if options.keys() <= {"how"}:  # the block alone is all that is added
        same(rest(nn.Sequential(*place.children())(x)), wanted)
    assert place[1] is place[1:2][0]


@pytest.mark.parametrize("options", [{}, {"how": "before", "zero_init": True}], ids=str)
def test_hooks_on_the_items_of_a_sequence_stay(options: dict[str, Any]) -> None:
    net = resnet()
    net.layer1.append(copy.deepcopy(net.layer1[0]))
    insert(net, "layer1", **options)
    called: list[nn.Module] = []
    for block in net.layer1:
        block.register_forward_hook(lambda module, *_: called.append(module))
        block.register_forward_pre_hook(lambda module, *_: called.append(module))
    net.layer1[-1].register_full_backward_hook(lambda module, *_: called.append(module))
    net.layer1[0].register_full_backward_pre_hook(lambda module, *_: called.append(module))
    net(X).sum().backward()
    first, second = net.layer1.attnzoo_host
    assert called == [first, first, second, second, second, first]


def test_replicas_of_data_parallel_hold_their_own_tensors() -> None:
    net = resnet()
    insert(net, "layer1", zero_init=True)
    place, weight = net.layer1, net.layer1[0].conv1.weight
    replica = place._replicate_for_data_parallel()
    for name in [*place._parameters]:
        setattr(replica, name, torch.zeros(1))
    assert replica.attnzoo_gain.shape == (1,)
    assert isinstance(place.attnzoo_gain, nn.Parameter)
    assert net.layer1[0].conv1.weight is weight


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[DeviceMesh]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.left_out_if(
    not hasattr(torch.cpu.Stream, "record_event"),
    "FSDP2 of this torch shards nothing on a CPU, not even nn.Linear",
)
@pytest.mark.parametrize(
    "parts", [(), (Inserted,), (Pair, nn.Linear)], ids=["whole", "places", "layers"]
)
@pytest.mark.filterwarnings("ignore:.*(barrier|device_id|pin_memory)")
def test_networks_with_blocks_are_sharded(one_rank: DeviceMesh, parts: Any) -> None:
    net = Whole()
    insert(net, "stem.bn")
    insert(net, "stem.bn", zero_init=True)
    insert(net, "stem", "simam", how="before", reduction=None)
    insert(net, "body.2", "eca", how="before", reduction=None)
    wanted = settled(net)(X)
    wanted.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters()}
    keys = [*net.state_dict()]
    net.zero_grad()
    for module in reversed([*net.modules()]):
        if isinstance(module, parts):
            fully_shard(module, mesh=one_rank)
    fully_shard(net, mesh=one_rank)
    found = net(X)
    same(found, wanted)
    found.square().sum().backward()
    sharded = {name: p.grad.full_tensor() for name, p in net.named_parameters()}
    assert gradients.keys() == sharded.keys()
    for name, gradient in gradients.items():
        same(sharded[name], gradient)
    weights = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    assert [*weights] == keys
    set_model_state_dict(net, weights, options=StateDictOptions(full_state_dict=True))
