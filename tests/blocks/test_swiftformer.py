"""Efficient additive attention: its formula, timm's layer, tiny norms and half precision."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.swiftformer import EfficientAdditiveAttention
from torch import Tensor, nn

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from contract import step
from distributions import assert_normal, assert_uniform

CONFIGS = [
    {"c": 8},
    {"c": 12, "token_dim": 8, "heads": 2},
    {"c": 10, "token_dim": 14, "heads": 3},
    {"c": 3, "token_dim": 1},
]


def made(dtype: torch.dtype = torch.float64, **config: Any) -> nn.Module:
    block = attnzoo.build("swiftformer", **config).to(dtype)
    randomize_parameters(block)
    return block


def formula(x: Tensor, w: dict[str, Tensor], token_dim: int) -> Tensor:
    """The authors' arithmetic on (B, T, C), line by line."""
    q = x @ w["to_query.weight"].T + w["to_query.bias"]
    k = x @ w["to_key.weight"].T + w["to_key.bias"]
    q = q / q.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    k = k / k.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    a = (q @ w["w_g"]) * token_dim**-0.5
    a = a / a.norm(dim=1, keepdim=True).clamp(min=1e-12)
    g = (a * q).sum(1)[:, None]
    y = (g * k) @ w["proj.weight"].T + w["proj.bias"] + q
    return y @ w["final.weight"].T + w["final.bias"]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_formula(config: dict[str, Any], tokens: int) -> None:
    block = made(**config, layout="sequence")
    inputs = {"x": torch.randn(3, tokens, config["c"], dtype=torch.float64)}
    out = config.get("token_dim", config["c"])
    wanted = step(
        block, inputs, lambda leaves: formula(leaves["x"], dict(block.named_parameters()), out)
    )
    assert_close(step(block, inputs), wanted, torch.float64)


@pytest.mark.parametrize("config", CONFIGS)
def test_image_is_the_sequence_of_its_pixels(config: dict[str, Any]) -> None:
    image = made(**config)
    sequence = attnzoo.build("swiftformer", **config, layout="sequence").double()
    sequence.load_state_dict(image.state_dict())
    x = torch.randn(2, config["c"], 5, 3, dtype=torch.float64)
    y = image(x)
    assert y.shape == (2, config.get("token_dim", config["c"]), 5, 3)
    assert_close(y.flatten(2).mT, sequence(x.flatten(2).mT))


def test_any_leading_axes() -> None:
    block = made(c=6, token_dim=4, layout="sequence")
    x = torch.randn(2, 3, 5, 7, 6, dtype=torch.float64)
    y = block(x)
    assert y.shape == (2, 3, 5, 7, 4)
    assert_close(y[1, 2, 3], block(x[1, 2, 3]))


def test_heads_only_widen() -> None:
    """Two heads equal one head of twice the width, except for the last layer's output channels."""
    block = made(c=6, token_dim=4, heads=2, layout="sequence")
    assert {k: tuple(v.shape) for k, v in block.state_dict().items()} == {
        "w_g": (8, 1),
        "to_query.weight": (8, 6),
        "to_query.bias": (8,),
        "to_key.weight": (8, 6),
        "to_key.bias": (8,),
        "proj.weight": (8, 8),
        "proj.bias": (8,),
        "final.weight": (4, 8),
        "final.bias": (4,),
    }


@pytest.mark.parametrize("proj", ["Proj", "proj"], ids=["authors", "timm and Hugging Face"])
def test_the_names_of_all_ports_load(proj: str) -> None:
    block = made(torch.float32, c=6)
    theirs = {
        f"network.2.1.attn.{key.replace('proj.', f'{proj}.')}": value
        for key, value in block.state_dict().items()
    }
    x = torch.randn(2, 6, 4, 4)
    assert_close(attnzoo.from_upstream("swiftformer", theirs, c=6)(x), block(x))


def test_equals_timm() -> None:
    theirs = EfficientAdditiveAttention(12, 12)
    ours = attnzoo.from_upstream("swiftformer", theirs.state_dict(), c=12)
    inputs = {"x": torch.randn(2, 12, 7, 5)}
    assert_close(step(ours, inputs), step(theirs, inputs, lambda leaves: theirs(leaves["x"])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-4, 30.0, 6e3])
def test_half_precision_at_any_size(dtype: torch.dtype, size: float) -> None:
    """The lengths of large vectors overflow float16, and 1e-12 vanishes in it."""
    block = made(torch.float32, c=64, token_dim=256)
    x = size * torch.randn(2, 64, 8, 8)
    wanted = step(block, {"x": x.to(dtype).float()})
    found = step(block.to(dtype), {"x": x.to(dtype)})
    assert_close(found["outputs"], wanted["outputs"], dtype)
    assert all(g.isfinite().all() for g in [*found["inputs"], *found["parameters"].values()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_zero_query_stays_zero(dtype: torch.dtype) -> None:
    """A zero vector is divided by 1e-12, and its gradients are finite where the dtype allows it."""
    block = made(c=4, layout="sequence")
    with torch.no_grad():
        for layer in (block.to_query, block.to_key):
            layer.weight.zero_()
            layer.bias.zero_()
    weights, inputs = (
        dict(block.to(dtype).named_parameters()),
        {"x": torch.randn(2, 3, 4).to(dtype)},
    )
    found = step(block, inputs)
    bare = F.linear(block.proj.bias, *block.final.parameters())
    assert_close(found["outputs"][0], bare.expand(2, 3, 4))
    if dtype == torch.float64:
        assert_close(found, step(block, inputs, lambda leaves: formula(leaves["x"], weights, 4)))


@pytest.mark.parametrize("reference", [False, True], ids=["pair", "reference"])
@pytest.mark.parametrize("short", ["tokens", "scores"])
def test_vectors_shorter_than_the_authors_eps(short: str, reference: bool) -> None:
    """They are divided by 1e-12, a constant in the backward pass."""
    block, x = made(c=6, layout="sequence"), torch.randn(2, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        if short == "scores":
            block.w_g *= 1e-14
        else:
            block.to_query.bias.zero_()
            block.to_key.bias.zero_()
            x[:, 1:3] *= 1e-13
    weights, inputs = dict(block.named_parameters()), {"x": x}
    wanted = step(block, inputs, lambda leaves: formula(leaves["x"], weights, 6))
    with reference_forms() if reference else nullcontext():
        found = step(block, inputs)
    for part in ("outputs", "inputs", "parameters"):
        assert_close(found[part], wanted[part])


def test_initial_distributions() -> None:
    """w_g from N(0, 1), torch's default for the layers."""
    torch.manual_seed(0)
    block = attnzoo.build("swiftformer", 64, heads=16)
    assert_normal(block.w_g, 1.0)
    for layer in (block.to_query, block.to_key, block.proj, block.final):
        assert_uniform(layer.weight, layer.in_features**-0.5)
        assert_uniform(layer.bias, layer.in_features**-0.5)


def test_memory_format_does_not_change_results_on_a_large_map() -> None:
    block = made(torch.float32, c=16)
    x = torch.randn(2, 16, 33, 17)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_close(step(block, {"x": last}), step(block, {"x": x}))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"c": 0}, "c=0"),
        ({"c": 4, "token_dim": 0}, "token_dim=0"),
        ({"c": 4, "heads": 0}, "heads=0"),
        ({"c": 4, "layout": "images"}, "did you mean 'image'"),
    ],
)
def test_refuses(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("swiftformer", **config)
