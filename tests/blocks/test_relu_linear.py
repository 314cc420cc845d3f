"""Multi-scale ReLU linear attention: its formula, timm's layer, eps and half precision."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.efficientvit_mit import LiteMLA
from torch import Tensor, nn

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.blocks.relu_linear import relu_linear_attention
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from contract import step
from distributions import assert_uniform

CONFIGS = [
    {"c": 16},
    {"c": 24, "dim": 16, "scales": ()},
    {"c": 16, "dim": 4, "heads_ratio": 0.5, "scales": (3, 7), "c_out": 10},
    {"c": 6, "dim": 3, "heads_ratio": 2.0, "scales": [1], "eps": 1e-5},
]


def made(dtype: torch.dtype = torch.float64, **config: Any) -> nn.Module:
    block = attnzoo.build("relu_linear", **config).to(dtype)
    randomize_parameters(block)
    return block


def formula(block: nn.Module, x: Tensor, quadratic: bool) -> Tensor:
    """The authors' arithmetic in either order of products, with their eps."""
    qkv = block.qkv(x)
    fields = [qkv]
    for deep, point in zip(block.depthwise, block.pointwise, strict=True):
        fields.append(point(deep(qkv)))
    b, _, h, w = x.shape
    z = torch.cat(fields, 1).reshape(b, -1, 3 * block.dim, h * w)
    q, k, v = z[:, :, : block.dim], z[:, :, block.dim : 2 * block.dim], z[:, :, 2 * block.dim :]
    q, k = q.relu(), k.relu()
    if quadratic:
        weights = k.mT @ q
        out = v @ (weights / (weights.sum(2, keepdim=True) + block.eps))
    else:
        out = F.pad(v, (0, 0, 0, 1), value=1) @ k.mT @ q
        out = out[:, :, :-1] / (out[:, :, -1:] + block.eps)
    return block.norm(block.proj(out.reshape(b, -1, h, w)))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("quadratic", [False, True], ids=["linear", "quadratic"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (2, 4), (3, 3), (9, 7), (1, 40)])
def test_equals_both_orders_of_the_authors(
    config: dict[str, Any], quadratic: bool, size: tuple[int, int]
) -> None:
    block = made(**config)
    inputs = {"x": torch.randn(2, config["c"], *size, dtype=torch.float64)}
    state = {k: v.clone() for k, v in block.state_dict().items()}
    found = step(block, inputs)
    block.load_state_dict(state)
    assert_close(found, step(block, inputs, lambda leaves: formula(block, leaves["x"], quadratic)))


@pytest.mark.parametrize("size", [(2, 3), (8, 8)])
def test_equals_timm(size: tuple[int, int]) -> None:
    theirs = LiteMLA(16, 12, scales=(3, 5))
    randomize_parameters(theirs)
    ours = attnzoo.from_upstream(
        "relu_linear", theirs.state_dict(), c=16, c_out=12, scales=[3, 5], eps=theirs.eps
    )
    inputs = {"x": torch.randn(3, 16, *size)}
    found = step(ours, inputs)
    assert_close(found["outputs"], step(theirs, inputs, lambda x: theirs(x["x"]))["outputs"])
    assert_close(found["inputs"], step(theirs, inputs, lambda x: theirs(x["x"]))["inputs"])


@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-50, 1e-15])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_query_orthogonal_to_all_keys_gives_zero(dtype: torch.dtype, eps: float) -> None:
    """The result is exactly 0, although eps underflows in half precision."""
    block = made(dtype, c=8, scales=(), eps=eps).eval()
    with torch.no_grad():
        block.qkv.weight[:8] = -block.qkv.weight[:8].abs()  # queries of positive inputs
    found = step(block, {"x": torch.rand(2, 8, 4, 5).to(dtype)})
    bare = block.norm(torch.zeros(2, 8, 4, 5, dtype=dtype))
    assert torch.equal(found["outputs"][0], bare)
    with reference_forms():
        assert torch.equal(block(torch.rand(2, 8, 4, 5).to(dtype)), bare)
    assert all(g.isfinite().all() for g in found["parameters"].values())
    assert not found["inputs"][0].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-3, 30.0, 1000.0])
def test_half_precision_at_any_size(dtype: torch.dtype, size: float) -> None:
    """The sums over pixels of large inputs overflow float16; in float32 they do not."""
    block = made(torch.float32, c=32).eval()
    x = (size * torch.randn(2, 32, 24, 24)).to(dtype)
    wanted = step(block, {"x": x.float()})
    found = step(block.to(dtype), {"x": x})
    assert all(g.isfinite().all() for g in [*found["outputs"], *found["parameters"].values()])
    assert_close(found["outputs"], wanted["outputs"], dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_autocast_leaves_the_sums_in_float32(dtype: torch.dtype) -> None:
    block = made(torch.float32, c=32)
    z = torch.randn(1, 96, 48, 48).to(dtype)
    wanted = block._attend(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block._attend(z), wanted)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"c": 24, "dim": 16, "heads_ratio": 0.5}, "heads_ratio=0.5 leaves no head"),
        ({"c": 4, "dim": 8}, "take dim=4 or less"),
        ({"c": 16, "heads_ratio": -1.0}, "heads_ratio=-1.0 leaves no head"),
        ({"c": 16, "scales": (5, 4)}, r"scales\[1\]=4 must be odd; the nearest are 3, 5"),
        ({"c": 16, "scales": (0,)}, r"scales\[0\]=0"),
        ({"c": 16, "eps": -1e-9}, "eps=-1e-09 must be at least 0"),
        ({"c": 16, "dim": 0}, "dim=0"),
        ({"c": 16, "c_out": 0}, "c_out=0"),
    ],
)
def test_refuses(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("relu_linear", **config)


def test_initial_distributions() -> None:
    """torch's default in every layer."""
    torch.manual_seed(0)
    block = attnzoo.build("relu_linear", 64, scales=(3, 5))
    for layer in (block.qkv, *block.depthwise, *block.pointwise, block.proj):
        assert_uniform(layer.weight, layer.weight[0].numel() ** -0.5)
        assert layer.bias is None
    assert (block.norm.weight == 1).all()
    assert (block.norm.bias == 0).all()
    assert (block.norm.eps, block.norm.momentum) == (1e-5, 0.1)


def test_the_number_of_heads_is_rounded_down_twice() -> None:
    assert attnzoo.build("relu_linear", c=31, dim=8, heads_ratio=0.5).heads == 1
    assert attnzoo.build("relu_linear", c=32, dim=8, heads_ratio=1.4).heads == 5
    assert attnzoo.build("relu_linear", c=31, dim=8, heads_ratio=1.1).heads == 3


def test_eps_is_added_to_the_normalizer() -> None:
    z = torch.randn(2, 12, 5, dtype=torch.float64)
    q, k, v = z[:, :4].relu(), z[:, 4:8].relu(), z[:, 8:]
    scores = q.mT @ k
    wanted = (scores @ v.mT / (scores.sum(2, keepdim=True) + 0.5)).mT
    assert_close(relu_linear_attention(z, 4, 0.5), wanted)
    with reference_forms():
        assert_close(relu_linear_attention(z, 4, 0.5), wanted)


def test_one_value_of_a_train_mode_batch_norm() -> None:
    block = attnzoo.build("relu_linear", c=8)
    assert block(torch.randn(1, 8, 1, 2)).isfinite().all()
    with pytest.raises(ValueError, match="BatchNorm 1 value per channel"):
        block(torch.randn(1, 8, 1, 1))


def ambiguous(shape: tuple[int, int, int, int]) -> Tensor:
    """A gradient whose strides fit both memory formats: H or W is 1."""
    b, c, h, w = shape
    return torch.randn(b, h * w, c, dtype=torch.float64).mT.reshape(shape)


@pytest.mark.parametrize("size", [(1, 7), (7, 1)])
def test_gradients_of_one_row_do_not_depend_on_strides(size: tuple[int, int]) -> None:
    block = attnzoo.build("relu_linear", c=8).double().train()
    x = torch.randn(1, 8, *size, dtype=torch.float64, requires_grad=True)
    gradient = ambiguous((1, 8, *size))
    assert gradient.stride(1) == 1
    points = [x, *block.parameters()]
    found = torch.autograd.grad(block(x), points, gradient)
    plain = gradient.clone(memory_format=torch.contiguous_format)
    assert_close(found, torch.autograd.grad(block(x), points, plain))


def test_torch_has_not_mended_its_batch_norm() -> None:
    """If this fails, `contiguous_gradient` can go, once the oldest torch is one that is right."""
    norm = nn.BatchNorm2d(2).double()
    x = torch.randn(1, 2, 1, 7, dtype=torch.float64, requires_grad=True)
    gradient = ambiguous((1, 2, 1, 7))
    (found,) = torch.autograd.grad(norm(x), x, gradient)
    (wanted,) = torch.autograd.grad(
        norm(x), x, gradient.clone(memory_format=torch.contiguous_format)
    )
    assert (found - wanted).abs().max() > 0.1
