"""ct_msa against its formulas by loops: windows at any T, causality, positions and errors."""

import math

import pytest
import torch
from torch import Tensor

import attnzoo
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from distributions import assert_normal, assert_uniform


def made(**config: object) -> torch.nn.Module:
    block = attnzoo.build("ct_msa", dtype=torch.float64, **config).eval()
    randomize_parameters(block)
    return block


def spelled_out(weights: dict[str, Tensor], x: Tensor, heads: int, window: int, causal: bool):
    """One sequence (T, C), step by step and head by head, with weights by the authors' names."""

    def attend(x: Tensor, prefix: str) -> Tensor:
        t, c = x.shape
        d = c // heads
        qkv = x @ weights[f"{prefix}qkv.weight"].T
        if f"{prefix}qkv.bias" in weights:
            qkv = qkv + weights[f"{prefix}qkv.bias"]
        rows = []
        for i in range(t):
            start = i // window * window if window else 0
            stop = i + 1 if causal else min(start + window, t) if window else t
            heads_out = []
            for h in range(heads):
                q, k, v = (qkv[:, n * c + h * d : n * c + (h + 1) * d] for n in range(3))
                weight = (k[start:stop] @ q[i] / math.sqrt(d)).softmax(0)
                heads_out.append(weight @ v[start:stop])
            rows.append(torch.cat(heads_out))
        return torch.stack(rows) @ weights[f"{prefix}proj.weight"].T + weights[f"{prefix}proj.bias"]

    if "qkv.weight" in weights:
        return attend(x, "")
    x = x + weights["pos_embedding"][0, : len(x)]
    for i in range(sum(key.endswith("norm.weight") for key in weights)):
        x = x + attend(x, f"layers.{i}.0.")
        part = {k.removeprefix(f"layers.{i}.1."): w for k, w in weights.items()}
        y = torch.nn.functional.layer_norm(x, x.shape[-1:], part["norm.weight"], part["norm.bias"])
        y = y @ part["fn.net.0.weight"].T + part["fn.net.0.bias"]
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        x = x + y @ part["fn.net.3.weight"].T + part["fn.net.3.bias"]
    return x


def authors_weights(c: int, m: int, depth: int, length: int, bias: bool) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"pos_embedding": (1, length, c)}
    for i in range(depth):
        shapes |= {f"layers.{i}.0.qkv.weight": (3 * c, c), f"layers.{i}.0.proj.weight": (c, c)}
        shapes |= {f"layers.{i}.0.proj.bias": (c,), f"layers.{i}.1.norm.weight": (c,)}
        shapes |= {f"layers.{i}.1.norm.bias": (c,), f"layers.{i}.1.fn.net.0.weight": (m, c)}
        shapes |= {f"layers.{i}.1.fn.net.0.bias": (m,), f"layers.{i}.1.fn.net.3.weight": (c, m)}
        shapes |= {f"layers.{i}.1.fn.net.3.bias": (c,)}
        if bias:
            shapes |= {f"layers.{i}.0.qkv.bias": (3 * c,)}
    return {key: torch.randn(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 8, 11, 13])
@pytest.mark.parametrize("window", [0, 1, 4, 20])
def test_equals_the_formulas(window: int, steps: int, causal: bool) -> None:
    weights = authors_weights(c=6, m=5, depth=2, length=13, bias=True)
    block = attnzoo.from_upstream(
        "ct_msa", weights, c=6, heads=3, window=window, causal=causal, length=13, mlp_dim=5,
        depth=2, qkv_bias=True,
    ).double()  # fmt: skip
    x = torch.randn(2, 3, steps, 6, dtype=torch.float64)
    exact = {key: weight.double() for key, weight in weights.items()}
    wanted = [spelled_out(exact, series, 3, window, causal) for series in x.flatten(0, 1)]
    assert_close(block(x), torch.stack(wanted).view_as(x))


@pytest.mark.parametrize("bias", [True, False])
def test_attention_only_equals_the_formulas(bias: bool) -> None:
    whole = authors_weights(c=6, m=5, depth=1, length=13, bias=bias)
    weights = {
        k.removeprefix("layers.0.0."): w for k, w in whole.items() if k.startswith("layers.0.0.")
    }
    config = {"c": 6, "window": 5, "attention_only": True, "qkv_bias": bias}
    block = attnzoo.from_upstream("ct_msa", weights, **config).double()
    x = torch.randn(31, 6, dtype=torch.float64)  # longer than the default length: no positions
    assert_close(block(x), spelled_out({k: w.double() for k, w in weights.items()}, x, 2, 5, True))


@pytest.mark.parametrize("window", [0, 4, 6])
@pytest.mark.parametrize("config", [{"depth": 2}, {"attention_only": True}])
def test_no_step_depends_on_later_ones_or_other_windows(window: int, config: dict) -> None:
    block = made(c=8, window=window, **config)
    x = torch.randn(2, 14, 8, dtype=torch.float64)
    before = block(x)
    for t in range(14):
        moved = x.clone()
        moved[0, t] += 1
        changed = (block(moved) - before).abs().amax(-1) > 1e-12  # B T
        last = min(t - t % window + window, 14) if window else 14
        wanted = torch.zeros(2, 14, dtype=torch.bool)
        wanted[0, t:last] = True
        assert torch.equal(changed, wanted)


def test_without_causal_a_step_depends_on_its_whole_window() -> None:
    block = made(c=8, window=4, causal=False)
    x = torch.randn(10, 8, dtype=torch.float64)
    moved = x.clone()
    moved[9] += 1
    changed = (block(moved) - block(x)).abs().amax(-1) > 1e-12
    assert changed.nonzero().flatten().tolist() == [8, 9]


@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8), (2, 3, 5, 8), (2, 3, 2, 5, 8), (0, 3, 5, 8)])
def test_any_leading_axes(shape: tuple[int, ...]) -> None:
    block = made(c=8, window=3)
    x = torch.randn(shape, dtype=torch.float64)
    flat = x.reshape(-1, 5, 8)
    wanted = torch.cat([flat[:0], *(block(series)[None] for series in flat)]).reshape(shape)
    assert_close(block(x), wanted)


def test_initial_distributions() -> None:
    """Positions from N(0, 1), torch's default for the rest."""
    torch.manual_seed(0)
    block = attnzoo.build("ct_msa", 64, length=100, qkv_bias=True)
    assert_normal(block.positions, 1.0)
    layer = block.layers[0]
    for linear in (layer.attention.qkv, layer.attention.proj, layer.fc1, layer.fc2):
        assert_uniform(linear.weight, linear.in_features**-0.5)
        assert_uniform(linear.bias, linear.in_features**-0.5)
    assert (layer.norm.weight == 1).all()
    assert (layer.norm.bias == 0).all()
    assert layer.norm.eps == 1e-5


def test_dropout_acts_only_in_training() -> None:
    block = made(c=8, dropout=0.5)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.equal(block(x), block(x))
    block.train()
    assert not torch.equal(block(x), block(x))


def test_dropout_covers_attention_hidden_layer_and_output() -> None:
    block = made(c=8, depth=1, length=50, dropout=0.5).train()
    seen: dict[str, Tensor] = {}
    layer = block.layers[0]
    layer.fc2.register_forward_pre_hook(lambda _, args: seen.update(hidden=args[0]))
    layer.fc2.register_forward_hook(lambda *_: torch.ones(4, 50, 8, dtype=torch.float64))
    layer.attention.proj.register_forward_hook(lambda *_: torch.zeros(()))
    x = torch.randn(4, 50, 8, dtype=torch.float64)
    added = block(x) - x - block.positions[:50]
    assert_close(added.round().unique(), torch.tensor([0.0, 2.0]).double())
    assert_close(added, added.round())
    assert 0.4 < float((seen["hidden"] == 0).double().mean()) < 0.6


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"heads": 3}, "heads=3 must divide c=8; the nearest that do are 2, 4"),
        ({"window": -1}, "window=-1 must be at least 0"),
        ({"length": 0}, "length=0 must be at least 1"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"mlp_dim": 0}, "mlp_dim=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
        ({"attention_only": True, "depth": 2}, "depth=2 must be 1 with attention_only=True"),
    ],
)
def test_invalid_configs_raise_clear_errors(config: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        attnzoo.build("ct_msa", c=8, **config)


def test_more_steps_than_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"13 steps .* length=12: build it with length=13"):
        made(c=8, length=12)(torch.randn(1, 13, 8, dtype=torch.float64))
