"""Trend-aware attention against its formula, and which steps each mode depends on."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attnzoo
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from distributions import assert_uniform

C, T = 12, 9


def built(**config: Any) -> nn.Module:
    torch.manual_seed(3)
    block = attnzoo.build("trend_aware", **{"c": C, "heads": 3, **config}, dtype=torch.float64)
    randomize_parameters(block)
    return block


def series(*lead: int, steps: int = T) -> Tensor:
    return torch.randn(*lead, steps, C, dtype=torch.float64)


def convolved(conv: nn.Conv1d, x: Tensor, causal: bool, segments: tuple[int, ...]) -> Tensor:
    """Step by step: the sum over the kernel's steps within the segment."""
    k = conv.weight.shape[2]
    out, start = [], 0
    for length in segments:
        for t in range(length):
            y = conv.bias.expand(*x.shape[:-2], -1)
            for j in range(k):
                s = t + j - (k - 1 if causal else (k - 1) // 2)
                if 0 <= s < length:
                    y = y + x[..., start + s, :] @ conv.weight[:, :, j].t()
            out.append(y)
        start += length
    return torch.stack(out, -2)


def transcribed(block: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    cut = block.segments
    tq, tk = (q.shape[-2],), (k.shape[-2],)
    query = convolved(
        block.query, q, block.mode != "centered", cut if cut and block.mode == "centered" else tq
    )
    key = convolved(block.key, k, block.mode == "causal", cut or tk)
    value = v @ block.value.weight.t() + block.value.bias
    h, d = block.heads, C // block.heads
    outs, weights = [], []
    for i in range(h):
        part = slice(i * d, (i + 1) * d)
        scores = query[..., part] @ key[..., part].mT / math.sqrt(d)
        if block.causal:
            reach = torch.ones(scores.shape[-2:]).tril().bool()
            scores = scores.masked_fill(~reach, -1e9)
        weights.append(scores.softmax(-1))
        outs.append(weights[-1] @ value[..., part])
    y = torch.cat(outs, -1) @ block.out.weight.t() + block.out.bias
    return y, torch.stack(weights, -3)


CASES = [
    {"mode": mode, "kernel_size": kernel, **more}
    for kernel in (1, 3, 5)
    for mode, more in (
        ("centered", {}),
        ("centered", {"segments": [2, 4, 3]}),
        ("causal", {}),
        ("causal", {"causal": True}),
        ("causal_query", {}),
        ("causal_query", {"segments": [4, 5]}),
    )
]
CASES += [
    {"mode": "centered", "kernel_size": 1, "causal": True, "segments": [2, 4, 3]},
    {"mode": "causal_query", "kernel_size": 1, "causal": True},
]


@pytest.mark.parametrize("config", CASES, ids=str)
def test_equals_the_transcription(config: dict[str, Any]) -> None:
    block = built(**config)
    x = series(2, 2).requires_grad_()
    found, wanted = block(x, need_weights=True), transcribed(block, x, x, x)
    assert found[1].shape == (2, 2, 3, T, T)
    assert_close(found, wanted)
    assert_close(block(x), wanted[0])
    leaves, grads = [x, *block.parameters()], [torch.randn_like(w) for w in wanted]
    assert_close(
        torch.autograd.grad(found, leaves, grads), torch.autograd.grad(wanted, leaves, grads)
    )


@pytest.mark.parametrize("config", [c for c in CASES if not c.get("causal")], ids=str)
def test_cross_attention_equals_the_transcription(config: dict[str, Any]) -> None:
    block = built(**config)
    both = config["mode"] == "centered" and "segments" in config
    q = series(3, steps=T if both else 5).requires_grad_()
    k, v = series(3).requires_grad_(), series(3).requires_grad_()
    found, wanted = block(q, k, v, need_weights=True), transcribed(block, q, k, v)
    assert_close(found, wanted)
    leaves, grads = [q, k, v, *block.parameters()], [torch.randn_like(w) for w in wanted]
    assert_close(
        torch.autograd.grad(found, leaves, grads), torch.autograd.grad(wanted, leaves, grads)
    )
    assert_close(block(q, k), transcribed(block, q, k, k)[0])  # values default to the keys


def test_leading_axes_are_independent() -> None:
    block = built()
    x = series(2, 3, 4)
    y, weights = block(x, need_weights=True)
    assert weights.shape == (2, 3, 4, 3, T, T)
    for at in itertools.product(range(2), range(3), range(4)):
        assert_close(block(x[at], need_weights=True), (y[at], weights[at]))


def seen(block: nn.Module, *, of: str = "all") -> Tensor:
    """Whether output t changes when step s does, as (t, s)."""
    x = series(2)
    parts = {"query": x, "key": x, "value": x}
    before = block(*parts.values())
    columns = []
    for s in range(T):
        moved = x.clone()
        moved[:, s] += 1
        after = block(*(moved if of in ("all", name) else x for name in parts))
        columns.append((after != before).any(2).any(0))
    return torch.stack(columns, 1)


@pytest.mark.parametrize(
    ("mode", "kernel_size"),
    [("causal", 1), ("causal", 3), ("causal", 7), ("centered", 1), ("causal_query", 1)],
)
def test_with_the_mask_no_output_depends_on_a_later_step(mode: str, kernel_size: int) -> None:
    block = built(mode=mode, causal=True, kernel_size=kernel_size)
    assert torch.equal(seen(block), torch.ones(T, T).tril().bool())


def test_causal_mode_without_the_mask_depends_on_later_steps() -> None:
    assert seen(built(mode="causal")).all()


@pytest.mark.parametrize("mode", ["causal", "causal_query"])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_causal_queries_depend_only_on_earlier_steps(mode: str, kernel_size: int) -> None:
    found = seen(built(mode=mode, kernel_size=kernel_size), of="query")
    wanted = torch.ones(T, T).tril().triu(1 - kernel_size).bool()
    assert torch.equal(found, wanted)


def test_centered_convolutions_would_leak_through_the_mask() -> None:
    block = built()
    block.causal = True  # which the constructor refuses
    found = seen(block)
    wanted = torch.ones(T, T).tril(1).bool()
    wanted[0, 1] = False  # the first step has a single key, whose weight is always 1
    assert torch.equal(found, wanted)
    for mode in ("centered", "causal_query"):
        with pytest.raises(ValueError, match=r"would not be causal.*mode='causal'"):
            built(mode=mode, causal=True)


def test_convolutions_do_not_cross_segments() -> None:
    x, y = series(2), series(2)
    y[:, 4:] = x[:, 4:]
    block = built(segments=[4, 5], kernel_size=5)
    keys = [block._queries_and_keys(v, v)[1] for v in (x, y)]
    assert torch.equal(keys[0][:, 4:], keys[1][:, 4:])
    assert seen(block).all()  # attention spans all segments


def test_dropout_is_on_the_weights() -> None:
    block, x = built(dropout=0.4).train(), series(8)
    y, weights = block(x, need_weights=True)
    kept = weights != 0
    assert 0.5 < kept.double().mean() < 0.7
    whole = built().train()(x, need_weights=True)[1]
    assert_close(weights[kept], whole[kept] / 0.6)
    v = F.linear(x, block.value.weight, block.value.bias).view(8, T, 3, 4)
    mixed = torch.einsum("nhqk,nkhd->nqhd", weights, v).flatten(2)
    assert_close(y, F.linear(mixed, block.out.weight, block.out.bias))
    assert_close(built(dropout=0.4).eval()(x), built()(x))
    with torch.random.fork_rng():
        assert not torch.equal(block(x), block(x))


@pytest.mark.parametrize("kernel_size", [1, 5])
def test_initial_distributions(kernel_size: int) -> None:
    """Xavier's uniform weights in all four layers, torch's default biases."""
    torch.manual_seed(0)
    block = attnzoo.build("trend_aware", 96, kernel_size=kernel_size)
    for layer in (block.query, block.key, block.value, block.out):
        fan = 96 * layer.weight[0, 0].numel()
        assert_uniform(layer.weight, (6 / (2 * fan)) ** 0.5)
        assert_uniform(layer.bias, fan**-0.5)


def test_scores_do_not_overflow_in_half_precision() -> None:
    block = built(mode="causal", causal=True).half()
    with torch.no_grad():
        for layer in (block.query, block.key):
            layer.weight.mul_(200)
    x = series(2).half()
    y, weights = block(x, need_weights=True)
    assert y.isfinite().all()
    assert_close(weights.double().sum(3), torch.ones(2, 3, T).double(), torch.float16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"heads": 5}, "heads=5 must divide c=12"),
        ({"kernel_size": 4}, "kernel_size=4 must be odd; the nearest are 3, 5"),
        ({"kernel_size": 0}, "kernel_size=0 must be at least 1"),
        ({"mode": "centred"}, "did you mean 'centered'"),
        ({"mode": "causal", "segments": [4, 5]}, r"segments=\(4, 5\) with mode='causal'"),
        ({"segments": []}, r"segments=\(\) must be non-empty"),
        ({"segments": [4, 0]}, r"segments\[1\]=0 must be at least 1"),
        ({"dropout": -0.1}, "dropout=-0.1"),
    ],
)
def test_invalid_options_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(**config)


def test_invalid_calls_are_refused() -> None:
    x, short = series(2), series(2, steps=5)
    with pytest.raises(ValueError, match="value has 5 steps, key 9"):
        built()(x, x, short)
    with pytest.raises(ValueError, match="query has 5 steps, key 9; causal=True"):
        built(mode="causal", causal=True)(short, x)
    with pytest.raises(ValueError, match=r"query has 5 steps; segments=\(4, 5\) make 9"):
        built(segments=[4, 5])(short, x)
    with pytest.raises(ValueError, match="key has 5 steps"):
        built(segments=[4, 5], mode="causal_query")(x, short)
    with pytest.raises(ValueError, match=r"key has leading axes \(3,\), query \(2,\)"):
        built()(x, series(3))
    with pytest.raises(ValueError, match="key has 6 channels"):
        built()(x, x[..., :6])
