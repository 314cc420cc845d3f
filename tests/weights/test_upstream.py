"""Loading authors' weights: prefixes, namings, and errors for every key that does not fit."""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import attnzoo
from attnzoo import registry
from attnzoo.registry import KnownVariant, find
from attnzoo.weights import keys

Weights = dict[str, Tensor]


@pytest.fixture
def weights() -> Weights:
    return {"fc.0.weight": torch.randn(2, 32), "fc.2.weight": torch.randn(32, 2)}


def under(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}.{key}": value for key, value in weights.items()}


def test_values_arrive_unchecked_and_unchanged(weights: Weights) -> None:
    weights["fc.0.weight"][0, 0] = float("nan")
    block = attnzoo.from_upstream("se", weights, c=32)
    assert torch.equal(block.fc1.weight.nan_to_num(), weights["fc.0.weight"].nan_to_num())
    assert torch.equal(block.fc2.weight, weights["fc.2.weight"])
    assert block.training


def test_other_namings_and_shapes(weights: Weights) -> None:
    convs = {
        "fc1.weight": weights["fc.0.weight"][:, :, None, None],
        "fc2.weight": weights["fc.2.weight"][:, :, None, None],
    }
    assert torch.equal(attnzoo.from_upstream("se", convs, 32).fc1.weight, weights["fc.0.weight"])
    own = attnzoo.build("se", 32).state_dict()
    assert torch.equal(attnzoo.from_upstream("se", own, 32).fc1.weight, own["fc1.weight"])


def test_a_whole_checkpoint_under_one_prefix(weights: Weights) -> None:
    whole = {"conv1.weight": torch.ones(8, 3, 3, 3), **under("module.layer1.0.se", weights)}
    block = attnzoo.from_upstream("se", whole, c=32)
    assert torch.equal(block.fc1.weight, weights["fc.0.weight"])


def test_several_prefixes_are_named_and_picked(weights: Weights) -> None:
    other = {key: 2 * value for key, value in weights.items()}
    whole = {**under("layer1.0.se", weights), **under("layer1.1.se", other)}
    with pytest.raises(ValueError, match=r"'layer1\.0\.se', 'layer1\.1\.se'; pick one with prefix"):
        attnzoo.from_upstream("se", whole, c=32)
    for prefix in ("layer1.1.se", "layer1.1.se."):
        block = attnzoo.from_upstream("se", whole, c=32, prefix=prefix)
        assert torch.equal(block.fc1.weight, other["fc.0.weight"])


def test_at_the_root_beside_other_layers(weights: Weights) -> None:
    whole = {**weights, "conv1.weight": torch.ones(8, 3, 3, 3)}
    block = attnzoo.from_upstream("se", whole, c=32, prefix="")
    assert torch.equal(block.fc1.weight, weights["fc.0.weight"])
    with pytest.raises(ValueError, match=r"unexpected: conv1\.weight"):
        attnzoo.from_upstream("se", whole, c=32)
    with pytest.raises(ValueError, match=r"unexpected: fc\.0\.bias"):
        attnzoo.from_upstream("se", {**whole, "fc.0.bias": torch.zeros(2)}, c=32, prefix="")


def test_shapes_select_the_prefix(weights: Weights) -> None:
    wide = {"fc.0.weight": torch.randn(4, 64), "fc.2.weight": torch.randn(64, 4)}
    whole = {**under("layer1.0.se", weights), **under("layer2.0.se", wide)}
    block = attnzoo.from_upstream("se", whole, c=64)
    assert torch.equal(block.fc1.weight, wide["fc.0.weight"])


def test_mismatches_are_named(weights: Weights) -> None:
    with pytest.raises(ValueError, match=r"missing: fc\.2\.weight"):
        attnzoo.from_upstream("se", {"fc.0.weight": weights["fc.0.weight"]}, c=32)
    with pytest.raises(ValueError, match=r"unexpected: fc\.0\.bias"):
        attnzoo.from_upstream("se", {**weights, "fc.0.bias": torch.zeros(2)}, c=32)
    with pytest.raises(ValueError, match=r"of another shape: fc\.0\.weight of shape \(2, 32\) for"):
        attnzoo.from_upstream("se", weights, c=64)
    with pytest.raises(ValueError, match="missing"):
        attnzoo.from_upstream("se", {}, c=32)
    with pytest.raises(ValueError, match="missing: nowhere"):
        attnzoo.from_upstream("se", weights, c=32, prefix="nowhere")


def test_transposed_weights_are_refused(weights: Weights) -> None:
    """Although they have as many elements; shapes may differ in axes of length one only."""
    weights["fc.0.weight"] = weights["fc.0.weight"].mT.contiguous()
    with pytest.raises(ValueError, match=r"fc\.0\.weight of shape \(32, 2\) for \(2, 32\)"):
        attnzoo.from_upstream("se", weights, c=32)


class Scale(nn.Module):
    """Scales each channel."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def test_layers_mapped_to_none_are_ignored_by_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_blocks", dict(registry._catalogue()))
    namings = {"scale.w": "weight", "gc": None, "old.*.norm": None}
    attnzoo.register("scale", Scale, layout="image", upstream=namings)
    theirs, one = {"scale.w": torch.arange(4.0)}, torch.ones(1)
    for idle in ("gc.weight", "gc", "old.3.norm.bias"):
        block = attnzoo.from_upstream("scale", {**theirs, idle: one}, c=4)
        assert torch.equal(block.weight, theirs["scale.w"])
    for other in ("gcustom.weight", "gc2", "old.norm.bias", "old.3.norms", "old.3.4.norm", "a.gc"):
        with pytest.raises(ValueError, match=f"unexpected: {other}$"):
            attnzoo.from_upstream("scale", {**theirs, other: one}, c=4)


def test_arguments_that_are_no_state_dict_are_refused(weights: Weights) -> None:
    with pytest.raises(ValueError, match="contains several: 'model', 'ema'; load it and pass"):
        attnzoo.from_upstream("se", {"model": weights, "ema": weights}, c=32)
    with pytest.raises(TypeError, match=r"state_dict\['x'\] is a str, not a Tensor"):
        attnzoo.from_upstream("se", {**weights, "x": "y"}, c=32)
    with pytest.raises(TypeError, match="prefix=3 must be a str or None"):
        attnzoo.from_upstream("se", weights, c=32, prefix=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="complex; weights must be real"):
        attnzoo.from_upstream("se", {k: v.to(torch.cfloat) for k, v in weights.items()}, c=32)
    with pytest.raises(ValueError, match="meta device has no values"):
        attnzoo.from_upstream("se", weights, c=32, device="meta")
    with pytest.raises(ValueError, match=r"unexpected: .* and 92 more"):
        attnzoo.from_upstream("se", {**weights, **{f"x{i}": torch.ones(1) for i in range(100)}}, 32)
    with pytest.raises(TypeError, match=r"pass module\.state_dict\(\)"):
        attnzoo.from_upstream("se", attnzoo.build("se", 32), c=32)  # type: ignore[arg-type]


def test_the_block_has_the_default_dtype(weights: Weights) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        block = attnzoo.from_upstream("se", weights, c=32)
    finally:
        torch.set_default_dtype(before)
    assert block.fc1.weight.dtype == torch.float64


def test_key_prefixes_of_wrappers_are_ignored(weights: Weights) -> None:
    for prefix in ("module", "_orig_mod", "model", "module._orig_mod.model", "net.layer1.0.se"):
        block = attnzoo.from_upstream("se", under(prefix, weights), c=32)
        assert torch.equal(block.fc1.weight, weights["fc.0.weight"])
    inside = {key.replace("fc.", "fc._orig_mod."): value for key, value in weights.items()}
    for wrapped in (inside, under("module.layer1._fsdp_wrapped_module.se", inside)):
        block = attnzoo.from_upstream("se", wrapped, c=32)
        assert torch.equal(block.fc2.weight, weights["fc.2.weight"])
    picked = under("layer1._orig_mod.se", weights)
    for prefix in ("layer1._orig_mod.se", "layer1.se"):
        attnzoo.from_upstream("se", picked, c=32, prefix=prefix)
    with pytest.raises(
        ValueError, match=r"'fc\._orig_mod\.0\.weight' with and without its wrapper"
    ):
        attnzoo.from_upstream("se", {**weights, **inside}, c=32)


def test_all_mismatches_are_named_and_nothing_is_modified(weights: Weights) -> None:
    wrong = {"fc.0.weight": torch.randn(3, 32), "fc.0.bias": torch.zeros(3)}
    before = copy.deepcopy(wrong)
    with pytest.raises(ValueError) as caught:
        attnzoo.from_upstream("se", wrong, c=32)
    for part in ("missing: fc.2.weight", "unexpected: fc.0.bias", "(3, 32) for (2, 32)"):
        assert part in str(caught.value)
    assert all(torch.equal(wrong[key], before[key]) for key in before)
    block = attnzoo.from_upstream("se", weights, c=32)
    with torch.no_grad():
        block.fc1.weight.zero_()
    assert weights["fc.0.weight"].any(), "the block has its own copies"


def test_nested_dictionaries_load_as_from_a_path(weights: Weights) -> None:
    for key in ("state_dict", "model"):
        block = attnzoo.from_upstream("se", {key: weights, "epoch": 3}, c=32)
        assert torch.equal(block.fc1.weight, weights["fc.0.weight"])


def test_files_of_weights(weights: Weights, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "se.safetensors")
    torch.save(weights, tmp_path / "se.pth")
    torch.save({"state_dict": OrderedDict(under("module", weights)), "epoch": 3}, tmp_path / "c.pt")
    for file in ("se.safetensors", "se.pth", "c.pt"):
        for path in (tmp_path / file, str(tmp_path / file)):
            block = attnzoo.from_upstream("se", path, c=32)
            assert torch.equal(block.fc1.weight, weights["fc.0.weight"])


class Malicious:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def damaged(content: bytes) -> Iterator[bytes]:
    """Copies of the content with one byte of the pickle changed, or cut off at that byte."""
    for place in range(0, min(1000, len(content)), 4):
        yield content[:place] + bytes([content[place] ^ 21]) + content[place + 1 :]
        yield content[:place]


def test_files_without_weights_are_refused_and_run_no_code(
    weights: Weights, tmp_path: Path
) -> None:
    ran, file = tmp_path / "ran", tmp_path / "file.pth"

    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            attnzoo.from_upstream("se", file, c=32)
        assert not ran.exists()

    refused("must be a mapping or the path of a file")
    torch.save({**weights, "x": Malicious(ran)}, file)
    refused("contains more than tensors, or is damaged; none of its code was run")
    file.write_bytes(pickle.dumps(Malicious(ran)))
    refused("contains more than tensors")
    torch.save(attnzoo.build("se", 32), file)
    refused("contains more than tensors")
    for content in (b"", b"no weights at all", b"PK\x03\x04" + bytes(30)):
        file.write_bytes(content)
        refused(r"file\.pth")
    for zipped in (True, False):
        torch.save(weights, file, _use_new_zipfile_serialization=zipped)
        for content in damaged(file.read_bytes()):
            file.write_bytes(content)
            with suppress(ValueError):  # some damage does not affect the weights
                attnzoo.from_upstream("se", file, c=32)
    file = tmp_path / ("x" * 300)
    refused("must be a mapping or the path of a file")
    file = tmp_path / "file.pth"
    torch.save({"model": weights, "ema": weights}, file)
    refused("contains several: 'model', 'ema'; load it and pass the mapping")
    torch.save({"epoch": 3}, file)
    refused("contains none")
    pickle.loads(pickle.dumps(Malicious(ran)))
    assert ran.exists(), "unpickling does create the file"
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"{}")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        attnzoo.from_upstream("se", bad, c=32)


@pytest.mark.parametrize(
    ("name", "variant"), [(n, v) for n in attnzoo.names() for v in find(n).known_variants]
)
@pytest.mark.parametrize("prefix", ["", "layer1.0.att."])
def test_known_variants_are_named(name: str, variant: KnownVariant, prefix: str) -> None:
    theirs = {prefix + key: torch.zeros(2, 2) for key in variant.keys}
    with pytest.raises(ValueError) as caught:
        attnzoo.from_upstream(name, theirs, c=64)
    assert variant.whose in str(caught.value)
    assert variant.computes in str(caught.value)
    with pytest.raises(ValueError) as caught:
        attnzoo.from_upstream(name, {"conv.weight": torch.zeros(2, 2)}, c=64)
    assert "the keys are those of" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "variant", "key"),
    [(n, v, k) for n in attnzoo.names() for v in find(n).known_variants for k in v.lacks],
)
def test_a_key_that_a_variant_lacks_tells_it_apart(
    name: str, variant: KnownVariant, key: str
) -> None:
    theirs = {each: torch.zeros(2, 2) for each in (*variant.keys, key)}
    with pytest.raises(ValueError, match="does not contain the weights") as caught:
        attnzoo.from_upstream(name, theirs, **find(name).example)
    assert variant.whose not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("coordatt", attnzoo.build("coordatt", 32).state_dict()),  # of another width
        ("danet_channel", {"gamma": torch.zeros(3), "norm.beta": torch.zeros(1)}),
    ],
)
def test_the_authors_keys_are_not_named_as_a_known_variant(
    name: str, theirs: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=r"of another shape|unexpected") as caught:
        attnzoo.from_upstream(name, theirs, c=64)
    assert "the keys are those of" not in str(caught.value)


def test_timm_weights_load_or_are_named_as_a_known_variant() -> None:
    theirs = timm.layers.create_attn("coord", 64, rd_channels=8, bias=True).state_dict()
    attnzoo.from_upstream("coordatt", theirs, c=64)
    theirs = timm.layers.create_attn("coord", 64).state_dict()
    with pytest.raises(ValueError, match="those of timm's CoordAttn"):
        attnzoo.from_upstream("coordatt", theirs, c=64)
    theirs = timm.layers.create_attn("cbam", 64).state_dict()
    with pytest.raises(ValueError, match="those of timm's CbamModule, which has the mean before"):
        attnzoo.from_upstream("cbam", theirs, c=64)


@pytest.mark.parametrize("name", attnzoo.names())
def test_every_element_is_loaded_once(name: str) -> None:
    """All elements of a reference state dict are numbered, to see that each is used once."""
    from attnzoo.reference.cases import Case, cases

    for path in cases(name):
        case = Case.load(path)
        numbered, start = {}, 1
        for key, value in case.part("weight").items():
            size = value.numel()
            numbered[key] = torch.arange(start, start + size).reshape(value.shape)
            if value.is_floating_point():
                numbered[key] = numbered[key].double()
            start += size
        block = attnzoo.from_upstream(name, numbered, **case.config)
        own = [v.flatten() for v in block.state_dict().values() if v.is_floating_point()]
        loaded = torch.cat([*own, torch.zeros(0)]).tolist()
        assert len(set(loaded)) == len(loaded)
        trained = {
            element
            for key, value in numbered.items()
            if f"grad_weight.{key}" in case.tensors
            for element in value.flatten().tolist()
        }
        assert trained <= set(loaded)


def test_the_longest_path_names_a_key() -> None:
    naming = {"deep": "layer.first", "rest": "layer", "any.*.norm": "blocks.*.norm"}
    assert keys._theirs(naming, "layer.first.weight") == "deep.weight"
    assert keys._theirs(naming, "layer.firsts.weight") == "rest.firsts.weight"
    assert keys._theirs(naming, "blocks.3.norm.bias") == "any.3.norm.bias"
    assert keys._theirs(naming, "blocks.3.conv.norm.bias") == "blocks.3.conv.norm.bias"
    assert keys._theirs(naming, "other.weight") == "other.weight"


def test_a_missing_key_weighs_two_others() -> None:
    match = keys.Match("", {}, missing=["a", "b"], unexpected=["c"], misshaped=["d"])
    assert match.mismatches == 6
    assert not any(match._replace(**{f: [], g: []}).fits for f, g in (
        ("missing", "unexpected"), ("unexpected", "misshaped"), ("missing", "misshaped"),
    ))  # fmt: skip
    assert match._replace(missing=[], unexpected=[], misshaped=[]).fits


def test_counters_that_old_checkpoints_lack_start_at_zero() -> None:
    state = attnzoo.build("coordatt", 32).state_dict()
    old = {key: 2 * value for key, value in state.items() if not key.endswith("tracked")}
    block = attnzoo.from_upstream("coordatt", old, 32)
    assert block.bn1.num_batches_tracked == 0
    assert torch.equal(block.bn1.running_var, torch.full((8,), 2.0))


def test_of_many_keys_eight_are_named(weights: Weights) -> None:
    more = {f"fc.{i}.bias": torch.ones(2) for i in range(10, 20)}
    with pytest.raises(ValueError, match=r"fc\.17\.bias and 2 more$"):
        attnzoo.from_upstream("se", weights | more, c=32)
