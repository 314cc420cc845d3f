"""Authors' weights: found under any prefix and naming, refused key by key."""

import pytest
import torch
from torch import Tensor

import attnzoo

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


def test_shapes_tell_prefixes_apart(weights: Weights) -> None:
    wide = {"fc.0.weight": torch.randn(4, 64), "fc.2.weight": torch.randn(64, 4)}
    whole = {**under("layer1.0.se", weights), **under("layer2.0.se", wide)}
    block = attnzoo.from_upstream("se", whole, c=64)
    assert torch.equal(block.fc1.weight, wide["fc.0.weight"])


def test_faults_are_named(weights: Weights) -> None:
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


def test_what_is_no_state_dict_is_refused(weights: Weights) -> None:
    with pytest.raises(TypeError, match=r"state_dict\['state_dict'\] is a dict, not a Tensor"):
        attnzoo.from_upstream("se", {"state_dict": weights}, c=32)  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="prefix=3 must be a str or None"):
        attnzoo.from_upstream("se", weights, c=32, prefix=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="complex; weights must be real"):
        attnzoo.from_upstream("se", {k: v.to(torch.cfloat) for k, v in weights.items()}, c=32)
    with pytest.raises(ValueError, match="meta device holds no values"):
        attnzoo.from_upstream("se", weights, c=32, device="meta")
    with pytest.raises(ValueError, match=r"unexpected: .* and 92 more"):
        attnzoo.from_upstream("se", {**weights, **{f"x{i}": torch.ones(1) for i in range(100)}}, 32)
    with pytest.raises(TypeError, match=r"take module\.state_dict\(\)"):
        attnzoo.from_upstream("se", attnzoo.build("se", 32), c=32)  # type: ignore[arg-type]


def test_the_default_dtype_is_built(weights: Weights) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        block = attnzoo.from_upstream("se", weights, c=32)
    finally:
        torch.set_default_dtype(before)
    assert block.fc1.weight.dtype == torch.float64


@pytest.mark.parametrize("name", attnzoo.names())
def test_every_element_lands_once(name: str) -> None:
    """Numbering all elements of a reference state dict shows that each one is used, once."""
    from attnzoo.reference import Case, cases

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
        landed = torch.cat([*own, torch.zeros(0)]).tolist()
        assert len(set(landed)) == len(landed)
        trained = {
            element
            for key, value in numbered.items()
            if f"grad_weight.{key}" in case.tensors
            for element in value.flatten().tolist()
        }
        assert trained <= set(landed)
