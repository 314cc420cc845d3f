"""Where blocks go: tokens as maps, several calls, training only, lists of paths, own modules."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import attnzoo
from attnzoo.insertion.arrangement import Arrangement
from attnzoo.insertion.host import Inserted
from attnzoo.testing.inputs import randomize_parameters

X = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))  # a grid of 4 x 6


def vit(**options: Any) -> nn.Module:
    sizes = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    net = timm.models.VisionTransformer(**{**sizes, **options}, num_classes=5)
    randomize_parameters(net)
    return net.eval()


def learned(net: nn.Module) -> None:
    """No block of an insertion is at its initial values."""
    for key, parameter in net.named_parameters():
        if "attnzoo" in key:
            nn.init.normal_(parameter, std=0.5)


@pytest.mark.parametrize("as_map", [True, (4, 6)])
@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 1),
        ({"reg_tokens": 4}, 5),
        ({"class_token": False, "global_pool": "avg"}, 0),
    ],
)
def test_image_blocks_on_tokens_leave_class_tokens_aside(
    options: dict[str, Any], kept: int, as_map: Any
) -> None:
    net, seen = vit(**options), []
    report = attnzoo.insert(net, "blocks.0", "cbam", example_input=X, reduction=4, as_map=as_map)
    assert report.placements[0].config == {"c": 24, "reduction": 4}
    assert report.placements[0].macs == attnzoo.registry.find("cbam").closed_form(
        attnzoo.InputSize(1, 1, 4, 6), c=24, reduction=4
    ).macs  # fmt: skip
    learned(net)
    place = net.blocks[0]
    place.attnzoo.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    tokens = torch.randn(2, kept + 24, 24)
    before = place.attnzoo_host(tokens)
    after = place(tokens)
    (x, y) = seen[0]
    cells = before[:, kept:].reshape(2, 4, 6, 24).permute(0, 3, 1, 2)
    assert torch.equal(x, cells)
    assert torch.equal(after[:, :kept], before[:, :kept])
    assert torch.equal(after[:, kept:], y.permute(0, 2, 3, 1).flatten(1, 2))
    assert not torch.allclose(x, y)
    larger = torch.randn(2, kept + 8 * 12, 24)
    assert place(larger).shape == larger.shape
    assert seen[-1][0].shape == (2, 24, 8, 12)
    with pytest.raises(ValueError, match=r"23 tokens .* are no map in the proportions of 4 x 6"):
        place(torch.randn(2, kept + 23, 24))


@pytest.mark.parametrize("last", [False, True])
def test_blocks_of_tokens_on_maps_take_the_cells(last: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Identity())
    x = X
    if last:
        net, x = nn.Sequential(nn.Linear(3, 16), nn.Identity()), X.permute(0, 2, 3, 1)
    randomize_parameters(net)
    report = attnzoo.insert(net, "0", "ct_msa", example_input=x, as_map=True)
    assert report.placements[0].config == {"c": 16, "length": 32 * 48}
    learned(net)
    y = net[0].attnzoo_host(x)
    cells = y.flatten(1, 2) if last else y.flatten(2).mT
    wanted = net[0].attnzoo(cells)
    wanted = wanted.reshape(y.shape) if last else wanted.mT.reshape(y.shape)
    torch.testing.assert_close(net(x), wanted)
    attnzoo.remove(net)
    attnzoo.insert(net, "0", "dilated_inception", example_input=x, as_map=True)
    assert net(x).is_contiguous(), "a network may call view"


@pytest.mark.parametrize(
    ("where", "name", "as_map", "words"),
    [
        ("blocks.0", "cbam", False, r"takes \(B, C, H, W\); as_map=True takes tokens as a map"),
        ("blocks.0", "cbam", (5, 6), r"as_map=\(5, 6\) takes 30 tokens, and .* has 25"),
        ("blocks.0", "mamba", True, "leave as_map out"),
        ("patch_embed.proj", "cbam", True, "leave as_map out"),
        ("patch_embed.proj", "mamba", (4, 6), "gives tokens a grid, and .* as_map=True"),
        ("patch_embed.proj", "mamba", False, "as_map=True takes its cells as tokens"),
    ],
)
def test_what_as_map_refuses(where: str, name: str, as_map: Any, words: str) -> None:
    net = vit()
    with pytest.raises(ValueError, match=words):
        attnzoo.insert(net, where, name, example_input=X, as_map=as_map)
    assert not any(isinstance(m, Inserted) for m in net.modules())


def test_grids_that_do_not_exist_and_values_that_are_none() -> None:
    with pytest.raises(ValueError, match=r"no map in the 15 tokens .*as_map=\(rows, columns\)"):
        tokens = torch.randn(2, 15, 8)
        attnzoo.insert(
            nn.Sequential(nn.Linear(8, 24)), "0", "simam", example_input=tokens, as_map=True
        )
    for value in (3, (4,), (4, 0), (4.0, 6), [4, 6], "yes"):
        with pytest.raises(TypeError, match="must be True, or rows and columns"):
            attnzoo.insert(vit(), "blocks.0", "simam", example_input=X, as_map=value)  # type: ignore[arg-type]


class Repeats(nn.Module):
    """A layer that is called three times, at two paths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.one = self.two = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y: Tensor = self.two(self.one(self.one(x)[..., ::2]))
        return y


@pytest.mark.parametrize("where", ["one", "two", "[ot]*"])
def test_one_block_acts_at_every_call(where: str) -> None:
    net = Repeats()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    before = net(X)
    options = {"example_input": X, "reduction": 2}
    for words in ("shared=True", "called 3 times|one module at 2 paths"):
        with pytest.raises(ValueError, match=words):
            attnzoo.insert(net, where, "se", **options)
    report = attnzoo.insert(net, where, "se", shared=True, **options)
    assert net.one is net.two
    assert len(report.placements) == 1
    form = attnzoo.registry.find("se").closed_form(None, c=8, reduction=2)
    assert report.placements[0].macs == 3 * form.macs
    assert sum("attnzoo" in name for name, _ in net.named_parameters()) == 2
    calls: list[int] = []
    net.one.attnzoo.register_forward_hook(lambda *_: calls.append(1))
    assert not torch.allclose(net(X), before)
    assert len(calls) == 3
    twin = attnzoo.apply(Repeats(), report.recipe)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(X), net(X))
    attnzoo.remove(net)
    assert net.one is net.two
    assert type(net.one) is nn.Conv2d
    assert net.state_dict().keys() == state.keys()
    assert torch.equal(net(X), before)


class Heads(nn.Module):
    """A head for training only, with a norm that counts and a layer that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.drop, self.aux = nn.Dropout(), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        x = self.drop(self.norm(self.body(x)))
        return (x, self.aux(x)) if self.training else x


def test_modules_that_only_training_reaches() -> None:
    net = Heads().eval()
    state, random = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    with pytest.raises(ValueError, match=r"'aux' .*called 0 times .* pass train=True"):
        attnzoo.insert(net, "aux", "se", example_input=X, reduction=2)
    options = {"example_input": X, "reduction": 2, "train": True}
    attnzoo.insert(net, "aux", "se", dry_run=True, **options)
    assert torch.equal(torch.get_rng_state(), random), "dropout drew in the run"
    report = attnzoo.insert(net, "aux", "se", **options)
    assert report.placements[0].config["c"] == 4
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert not any(module.training for module in net.modules())
    assert net.train()(X)[1].shape == (2, 4, 32, 48)
    with pytest.raises(ValueError, match=r"'idle' .*in train mode$"):
        net.idle = nn.Conv2d(8, 8, 1)
        attnzoo.insert(net, "idle", "se", example_input=X, train=True)


@pytest.mark.slow
def test_the_heads_of_googlenet() -> None:
    net = torchvision.models.googlenet(num_classes=5, aux_logits=True, init_weights=False)
    x = torch.randn(2, 3, 96, 96)
    report = attnzoo.insert(net, ["aux1.conv", "aux2.conv"], "se", example_input=x, train=True)
    assert [place.path for place in report.placements] == ["aux1.conv", "aux2.conv"]
    out = net.train()(x)
    sum(part.sum() for part in out).backward()
    assert all(p.grad is not None for name, p in net.named_parameters() if "attnzoo" in name)


def test_lists_of_paths() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU())

    def paths(where: Any) -> list[str]:
        report = attnzoo.insert(net, where, "simam", example_input=X, dry_run=True)
        return [place.path for place in report.placements]

    assert paths(["3", "0"]) == paths(("0", "3")) == ["0", "3"]
    assert paths(["[02]", "3"]) == ["0", "2", "3"]
    with pytest.raises(ValueError, match=r"where='9' matches none.*nearest paths are"):
        paths(["0", "9"])
    with pytest.raises(ValueError, match=r"where=\[\] lists no path"):
        paths([])
    with pytest.raises(TypeError, match=r"must list paths, such as .*, not a Conv2d"):
        paths(["0", net[0]])
    nested = nn.Sequential(net)
    with pytest.raises(ValueError, match=r"'0\.0' and '0', which it is inside of"):
        attnzoo.insert(nested, ["0", "0.0"], "simam", example_input=X)


class Own(nn.Module):
    """A user's block of eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((8, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 8:
            raise RuntimeError(f"8 channels, not {x.shape[1]}")
        return x * self.scale


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1))


def test_a_module_of_ones_own_is_copied_to_each_place() -> None:
    net, own = network(), Own()
    report = attnzoo.insert(net, "[02]", own, example_input=X, zero_init=True)
    assert report.block.endswith("test_places:Own")
    blocks = [m for m in net.modules() if isinstance(m, Own)]
    assert len({id(m) for m in (*blocks, own)}) == 3
    assert len({id(m.scale) for m in blocks}) == 2
    assert report.parameters == 2 * (8 + 1)
    net[0].attnzoo_gain.data.fill_(1)
    y = net[0].attnzoo_host(X)
    torch.testing.assert_close(net[0](X), y * 0.5)
    with pytest.raises(ValueError, match=r"pass one: attnzoo\.apply\(model, recipe, module="):
        attnzoo.apply(network(), report.recipe)
    twin = attnzoo.apply(network(), report.recipe, module=own)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(X), net(X))


def test_own_modules_that_do_not_fit_are_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"'3' \(Conv2d\) .*does not take: 8 channels, not 5"):
        attnzoo.insert(net, ["0", "3"], Own(), example_input=X)
    with pytest.raises(TypeError, match=r"reduction=4 is for a block given by its name; Own is"):
        attnzoo.insert(net, "0", Own(), example_input=X, reduction=4)
    with pytest.raises(ValueError, match=r"is called with input1, input2 .*takes one tensor"):
        attnzoo.insert(net, "0", nn.Bilinear(2, 2, 2), example_input=X)
    with pytest.raises(ValueError, match=r"makes \(2, 4, 32, 48\) of \(2, 8, 32, 48\)"):
        attnzoo.insert(net, "0", nn.Conv2d(8, 4, 1), example_input=X)
    assert [type(m) for m in net] == [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.Conv2d]


def test_a_recipe_puts_the_same_blocks_back(tmp_path: Path) -> None:
    net = vit()
    recipe = attnzoo.insert(
        net, "blocks.0", "cbam", example_input=X, reduction=4, as_map=True, residual=True
    ).recipe
    recipe += attnzoo.insert(net, "blocks.0", "mamba", example_input=X, zero_init=True).recipe
    for where, name, options in (
        ("blocks.1.mlp", "swiftformer", {"how": "instead"}),
        ("blocks.1.norm1", "agent", {"as_map": True, "heads": 2, "window": (4, 6)}),
    ):
        recipe += attnzoo.insert(net, where, name, example_input=X, **options).recipe  # type: ignore[arg-type]
    recipe += attnzoo.insert(net, "patch_embed.proj", "ct_msa", example_input=X, as_map=True).recipe
    learned(net)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    read = json.loads((tmp_path / "recipe.json").read_text())
    assert read == recipe
    twin = vit()
    assert attnzoo.apply(twin.double(), read) is twin
    assert {p.dtype for p in twin.parameters()} == {torch.float64}
    twin.float()
    assert [*twin.state_dict()] == [*net.state_dict()]
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(X), net(X))
    assert twin.no_weight_decay() == net.no_weight_decay()
    assert [*attnzoo.remove(twin).state_dict()] == [*vit().state_dict()]


def test_recipes_that_do_not_fit_change_nothing() -> None:
    recipe = attnzoo.insert(network(), "[02]", "se", example_input=X, reduction=4).recipe
    for change, words in (
        ({"path": "7"}, r"a block at '7', which is no module of this network; .*nearest paths are"),
        ({"block": "senet"}, "did you mean 'se'"),
        ({"config": {"c": 8, "reduction": 9}}, "reduction=9 leaves no channel"),
        ({"hwo": "after"}, "must have path, block, config, and may have how"),
    ):
        net = network()
        with pytest.raises(ValueError, match=words):
            attnzoo.apply(net, [recipe[0], {**recipe[1], **change}])
        assert [type(m) for m in net] == [type(m) for m in network()]
    for wrong in (json.dumps(recipe), recipe[0]):
        with pytest.raises(TypeError, match=r"must be the list that report\.recipe is"):
            attnzoo.apply(network(), wrong)  # type: ignore[arg-type]
    nested = nn.Sequential(network())
    taken = {**recipe[0], "path": "0", "how": "instead", "block": "simam", "config": {"c": 8}}
    with pytest.raises(ValueError, match="one that stands instead of a module around"):
        attnzoo.apply(nested, [taken, {**recipe[0], "path": "0.0"}])
    assert type(nested[0]) is nn.Sequential


def test_checkpoints_of_hugging_face_come_back_with_their_blocks(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    class WithBlocks(transformers.ViTForImageClassification):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            attnzoo.apply(self, getattr(config, "attnzoo_recipe", []))

    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, num_labels=3,
    )  # fmt: skip
    net, x = WithBlocks(config).eval(), X[..., :32]
    report = attnzoo.insert(
        net, "vit.*layer*.[01]", "cbam", example_input=x, as_map=True, reduction=4, zero_init=True
    )
    assert len(report.placements) == 2
    learned(net)
    net.config.attnzoo_recipe = report.recipe
    net.save_pretrained(tmp_path)
    found = WithBlocks.from_pretrained(tmp_path)
    for key, value in net.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    assert torch.equal(found(x).logits, net(x).logits)
    assert (
        Arrangement(kept=1, grid=(4, 4))
        == found.vit.get_submodule(
            report.placements[0].path.removeprefix("vit.")
        ).attnzoo_site.arrangement
    )


class Unusual(nn.Module):
    """Calls itself otherwise than most modules do."""

    def __init__(this) -> None:
        super().__init__()
        this.conv = nn.Conv2d(16, 16, 1)

    def forward(this, x: Tensor) -> Tensor:
        return this.conv(x)


def test_own_modules_whatever_they_call_themselves() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    x = torch.randn(1, 3, 8, 8)
    assert attnzoo.insert(net, "1", Unusual(), example_input=x).parameters == 16 * 17
    with pytest.raises(TypeError, match=r"Unusual is a class; .* Unusual\(\.\.\.\)"):
        attnzoo.insert(net, "1", Unusual, example_input=x)
    with pytest.raises(TypeError, match=r"example_input=\(1, 3, 8, 8\) has no tensor"):
        attnzoo.insert(net, "1", "se", example_input=(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"path": ""}, "path=''"),
        ({"path": 3}, "path=3"),
        ({"how": "behind"}, "how='behind' must be one of 'after'"),
        ({"residual": "no"}, "residual='no' must be True or False"),
        ({"config": None}, "config=None at '1'; it must be a dict"),
        ({"arrangement": None}, "arrangement=None at '1'"),
        ({"arrangement": {"axis": 1}}, "has none but axes, grid, kept, flat"),
    ],
    ids=str,
)
def test_values_of_a_recipe_are_checked(value: dict[str, Any], words: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    before = str(net)
    recipe = [{"path": "1", "block": "simam", "config": {"c": 16}, **value}]
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        attnzoo.apply(net, recipe)
    assert str(net) == before


def test_a_grid_that_does_not_fit_names_the_one_that_does() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, depth=1)
    words = r"has 17; the nearest grid is as_map=\(4, 4\), behind 1 other tokens"
    with pytest.raises(ValueError, match=words):
        attnzoo.insert(
            vit, "blocks.0", "se", example_input=torch.randn(1, 3, 64, 64), as_map=(7, 7)
        )
