"""How people train: weight decay, layer-wise rates, checkpointing and averages of weights."""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import attnzoo
from attnzoo.registry import find
from attnzoo.testing.inputs import randomize_parameters

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SERIES = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(1))


def vit() -> nn.Module:
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4}
    return timm.models.VisionTransformer(**options, num_classes=5)


def resnet() -> nn.Module:
    widths, block = (16, 16, 32, 32), timm.models.resnet.BasicBlock
    net = timm.models.resnet.ResNet(
        block, (1, 1, 1, 1), num_classes=5, stem_width=16, channels=widths
    )
    randomize_parameters(net)
    return net


def undecayed(groups: list[dict[str, Any]], net: nn.Module) -> set[str]:
    """Names of what the groups do not decay; every parameter is in one group."""
    paths = {id(p): name for name, p in net.named_parameters()}
    found = [paths[id(p)] for group in groups for p in group["params"]]
    assert sorted(found) == sorted(paths.values())
    return {paths[id(p)] for g in groups for p in g["params"] if not g["weight_decay"]}


# What a block holds itself, of two axes or more, and is the weight of a projection all the same.
WEIGHTS = {"swiftformer": {"w_g"}, "ltae": {"query"}, "utae": {"query"}, "segearth_ov": {"proj"}}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "agent": [{}, {"variant": "deit", "layout": "sequence"}],
    "implicit": [{"variant": "full", "learn_bias": True, "color_feats": False}],
}


@pytest.mark.parametrize("name", attnzoo.names())
def test_tables_and_rates_of_every_block_are_exempt(name: str) -> None:
    """Weight decay is for layers: a block exempts what it holds outside of them."""
    for config in OPTIONS.get(name, [{}]):
        block = attnzoo.build(name, **{**find(name).example, **config})
        held = {
            f"{path}.{key}".lstrip(".")
            for path, module in block.named_modules()
            if type(module).__module__.startswith("attnzoo.")
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.ndim > 1 and key not in WEIGHTS.get(name, ())
        }
        for twin in (block, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert held <= twin.no_weight_decay() <= dict(twin.named_parameters()).keys()
        assert copy.deepcopy(block).to("meta").to_empty(device="cpu").no_weight_decay() >= held


def test_the_marks_are_those_of_the_papers() -> None:
    assert attnzoo.build("mamba", c=8).no_weight_decay() == {"A_log", "D"}
    assert attnzoo.build("dtm", **find("dtm").example).no_weight_decay() == {
        "mamba.A_log",
        "mamba.D",
    }
    assert attnzoo.build("ct_msa", c=8).no_weight_decay() == {"positions"}
    assert "range_temp" in attnzoo.build("jbu", c=8).no_weight_decay()
    assert attnzoo.build("ct_msa", c=8, attention_only=True).no_weight_decay() == set()
    assert attnzoo.build("mamba", c=8).A_log._no_weight_decay, "as trainers of Mamba read it"


COPIES = [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))]


@pytest.mark.parametrize("wrap", COPIES)
def test_timms_groups_of_an_inserted_network(wrap: Any) -> None:
    net = vit()
    own = net.no_weight_decay()
    plain = undecayed(param_groups_weight_decay(net, 0.1, no_weight_decay_list=own), net)
    attnzoo.insert(net, "blocks.*.attn", "mamba", example_input=X, zero_init=True)
    attnzoo.insert(net, "blocks.0", "agent", example_input=X, variant="deit", window=(4, 4))
    net = wrap(net)
    assert "cls_token" in own
    optimizer = create_optimizer_v2(net, "adamw", lr=0.1, weight_decay=0.1)
    found = undecayed(optimizer.param_groups, net)
    assert plain < found
    block = attnzoo.build("mamba", c=48)
    decayed = {k for k, p in block.named_parameters() if p.ndim > 1} - {"A_log"}
    for i in range(3):
        added = {k for k in found if k.startswith(f"blocks.{i}.attn.attnzoo")}
        names = {k for k, _ in block.named_parameters()} - decayed
        prefix = f"blocks.{i}.attn.attnzoo"
        assert added == {f"{prefix}.{k}" for k in names} | {f"{prefix}_gain"}
    agent = {k for k in found if k.startswith("blocks.0.attnzoo.")}
    assert {k.rpartition(".")[2] for k in agent if k.endswith("_bias")} == {
        f"{k}_bias" for k in ("an", "na", "ah", "aw", "ha", "wa", "ac", "ca")
    }
    exempt = net.no_weight_decay()
    assert exempt == attnzoo.no_weight_decay(net)
    groups = param_groups_weight_decay(net, 0.1, False, no_weight_decay_list=exempt)
    assert undecayed(groups, net) == exempt & dict(net.named_parameters()).keys()
    attnzoo.remove(net)
    assert net.no_weight_decay() == own
    assert "no_weight_decay" not in vars(net)


class Own(nn.Module):
    """A user's block, with a list of its own."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(c, 1))

    def no_weight_decay(self) -> list[str]:
        return ["table"]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table.T


def test_networks_that_blocks_were_built_into() -> None:
    """No insertion: the blocks are the network's own children."""
    net = nn.Sequential(nn.Linear(16, 16), attnzoo.build("mamba", c=16), nn.Linear(16, 2))
    assert attnzoo.no_weight_decay(net) == {"1.A_log", "1.D"}
    assert not hasattr(net, "no_weight_decay")
    attnzoo.insert(net, "1", "ct_msa", example_input=SERIES)
    assert net.no_weight_decay() == {"1.A_log", "1.D", "1.attnzoo.positions"}
    assert net.no_weight_decay() < dict(net.named_parameters()).keys()
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, not list; for an optimizer"):
        attnzoo.no_weight_decay([*net.parameters()])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "where", "name", "beside"),
    [
        (resnet, "layer*.0.bn2", "eca", "weight"),
        (vit, "blocks.*", "mamba", "attn.qkv.weight"),
    ],
)
def test_layer_wise_decay_gives_a_block_the_rate_of_its_layer(
    make: Any, where: str, name: str, beside: str
) -> None:
    net = make()
    before = param_groups_layer_decay(net, 0.1, layer_decay=0.5)
    report = attnzoo.insert(net, where, name, example_input=X)
    groups = param_groups_layer_decay(
        net, 0.1, no_weight_decay_list=net.no_weight_decay(), layer_decay=0.5
    )
    assert {g["lr_scale"] for g in groups} == {g["lr_scale"] for g in before}
    scales = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    rates = []
    for place in report.placements:
        module = net.get_submodule(place.path)
        own = scales[id(module.get_parameter(beside))]
        assert {scales[id(p)] for p in module.attnzoo.parameters()} == {own}
        rates.append(own)
    assert len({*rates}) == len(rates)
    assert not any("A_log" in name for name in decayed_names(groups, net))


def decayed_names(groups: list[dict[str, Any]], net: nn.Module) -> set[str]:
    return {name for name, _ in net.named_parameters()} - undecayed(groups, net)


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    out = net(x)
    getattr(out, "last_hidden_state", out).square().mean().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("make", "where", "how"),
    [(resnet, "layer?", "after"), (resnet, "layer?", "before"), (vit, "blocks.?", "after")],
)
def test_timms_gradient_checkpointing(make: Any, where: str, how: Any) -> None:
    net = make()
    name = "eca" if make is resnet else "mamba"
    attnzoo.insert(net, where, name, example_input=X, how=how)
    wanted = gradients(net.eval(), X)
    calls: list[str] = []
    block = next(m for m in net.modules() if type(m) is find(name).cls)
    block.register_forward_pre_hook(lambda *_: calls.append("block"))
    net.set_grad_checkpointing()
    same(gradients(net, X), wanted)
    assert len(calls) == 2, "computed again in the backward pass"


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.filterwarnings("ignore:.*_checkpointing:FutureWarning")
def test_gradient_checkpointing_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    net = transformers.ViTModel(config, add_pooling_layer=False)
    attnzoo.insert(net, "*layer*.[01]", "mamba", example_input=X)
    attnzoo.insert(net, "*layer*.1.attention*", "ct_msa", example_input=X, how="before")
    net.train()
    wanted = gradients(net, X)
    calls: list[str] = []
    inner = next(m for m in net.modules() if type(m) is find("ct_msa").cls)
    inner.register_forward_pre_hook(lambda *_: calls.append("layer"))
    net.gradient_checkpointing_enable()
    assert net.is_gradient_checkpointing
    same(gradients(net, X), wanted)
    assert len(calls) == 2, "computed again in the backward pass"
    net.gradient_checkpointing_disable()
    assert not net.is_gradient_checkpointing


AVERAGES: dict[str, Any] = {
    "timm v2": lambda net: ModelEmaV2(net, decay=0.75),
    "timm v3": lambda net: ModelEmaV3(net, decay=0.75, foreach=False),
    "timm v3, foreach": lambda net: ModelEmaV3(net, decay=0.75, foreach=True),
    "torch": lambda net: AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.75), use_buffers=True
    ),
}


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("how", ["after", "instead"])
def test_averages_of_weights_take_every_parameter_once(kind: str, how: Any) -> None:
    net = resnet()
    attnzoo.insert(net, "layer[12].0.bn2", "bam", example_input=X, how=how, reduction=4)
    if how == "after":
        attnzoo.insert(net, "layer1", "se", example_input=X, reduction=4, zero_init=True)
    ema = AVERAGES[kind](net)
    if kind == "torch":
        ema.update_parameters(net)  # the first update copies
    start = {key: value.clone() for key, value in net.state_dict().items()}
    randomize_parameters(net)
    (ema.update_parameters if kind == "torch" else ema.update)(net)
    now, found = net.state_dict(), ema.module.state_dict()
    assert [*found] == [*start] == [*now]
    assert dict(net.named_parameters()).keys() <= found.keys()
    buffers = dict(net.named_buffers())
    for key, value in found.items():
        if key not in buffers:
            assert not torch.equal(now[key], start[key])
            wanted = 0.75 * start[key] + 0.25 * now[key]
            torch.testing.assert_close(value, wanted, msg=key)
    assert attnzoo.remove(ema.module) is ema.module
