"""Padded batches: what a sample gives does not depend on the steps that a mask hides.

Every block over time takes `key_padding_mask`, and gives for each sample of a padded batch what
that sample gives alone; or it says in words why it cannot.
"""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo.registry import find
from attnzoo.testing.closeness import assert_close

from contract import made

STEPS = 13
# Which steps count: all, the first ones, the last ones, some within, one.
COUNT = {
    "all": range(STEPS),
    "first": range(9),
    "last": range(4, STEPS),
    "within": (1, 2, 4, 5, 6, 9, 10),
}
# Where the block takes a mask only in a form other than its example's.
FORMS: dict[str, list[dict[str, Any]]] = {
    "ltae": [
        {"padding_invariant": True, "positions": False},
        {"padding_invariant": True, "d_model": None, "mlp": [32, 32]},
    ],
    "trend_aware": [
        {},
        {"mode": "causal", "causal": True},
        {"mode": "causal_query"},
        {"mode": "causal"},
    ],
    "pyraformer": [{}, {"n_layers": 2, "output": "gather"}, {"cscm": "max"}, {"cscm": "conv"}],
    "ct_msa": [{"window": w, "causal": c} for w in (0, 4) for c in (True, False)]
    + [{"attention_only": True, "causal": False, "window": 4}],
    "mamba": [{}, {"bias": True, "conv": 1}],
    "dilated_inception": [{}, {"dilation": 2, "gated": True}, {"c": 64, "c_out": 256}],
}
# Blocks, and forms, that refuse a mask, and a word of the reason.
REFUSING = {
    "pyraformer_cscm": ({}, "nodes of every level"),
    "m_gtu": ({}, "fixed|mixing matrix"),
    "pyraformer": ({"output": "pyramid"}, "number of nodes"),
    "trend_aware": ({"segments": [6, 7]}, "segments"),
}


def temporal(name: str) -> bool:
    entry = find(name)
    layouts = {"sequence", "image_series"} & set(entry.layouts)
    return bool(layouts) and entry.family in ("temporal", "state-space")


def block_and_series(name: str, **config: Any) -> tuple[nn.Module, dict[str, Any]]:
    size = attnzoo.InputSize(batch=len(COUNT), steps=STEPS, height=2, width=3)
    _, block, inputs = made(name, size, torch.float64, **config)
    return block, inputs


def mask() -> Tensor:
    padded = torch.ones(len(COUNT), STEPS, dtype=torch.bool)
    for row, steps in enumerate(COUNT.values()):
        padded[row, list(steps)] = False
    return padded


def every_form() -> list[Any]:
    return [
        pytest.param(name, form, id=f"{name}-{i}")
        for name in attnzoo.names()
        if temporal(name)
        for i, form in enumerate(FORMS.get(name, [{}]))
        if name in FORMS or name not in REFUSING
    ]


def alone(block: nn.Module, inputs: dict[str, Any], row: int, steps: range) -> Any:
    """The sample's own call, of the steps that count alone."""
    batched = getattr(block, "batch_axes", {})

    def own(key: str, x: Tensor) -> Tensor:
        axis = batched.get(key, 0)
        return x.narrow(axis, row, 1).index_select(axis + 1, torch.tensor(list(steps)))

    return block(**{key: own(key, x) for key, x in inputs.items()})


@pytest.mark.parametrize("name, form", every_form())
def test_a_padded_batch_is_its_samples_alone(name: str, form: dict[str, Any]) -> None:
    block, inputs = block_and_series(name, **form)
    padded = mask()
    hostile = dict(inputs)
    (key, x), *_ = hostile.items()  # nan in what is padded: no number of it may reach another
    if name not in ("utae_aggregator", "ltae"):  # they multiply padding by weights of zero
        hostile[key] = x.masked_fill(padded.view(*padded.shape, *(1,) * (x.ndim - 2)), torch.nan)
    y = block(**hostile, key_padding_mask=padded)
    for row, steps in enumerate(COUNT.values()):
        wanted = alone(block, inputs, row, steps)[0]
        collapsed = name in ("ltae", "utae_aggregator")
        assert_close(y[row] if collapsed else y[row][list(steps)], wanted)
        if not collapsed and len(steps) < STEPS:
            assert not y[row][padded[row]].any(), "outputs of padded steps are zero"


@pytest.mark.parametrize("name, form", every_form())
def test_no_gradient_reaches_a_padded_step(name: str, form: dict[str, Any]) -> None:
    block, inputs = block_and_series(name, **form)
    (key, x), *_ = inputs.items()
    inputs[key] = x.requires_grad_()
    block(**inputs, key_padding_mask=mask()).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert not x.grad[mask()].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("name, form", every_form())
def test_a_sample_of_padding_alone_is_finite(name: str, form: dict[str, Any]) -> None:
    block, inputs = block_and_series(name, **form)
    padded = mask()
    padded[0] = True
    assert block(**inputs, key_padding_mask=padded).isfinite().all()


@pytest.mark.parametrize("name", [name for name in attnzoo.names() if temporal(name)])
def test_every_block_over_time_takes_a_mask_or_refuses_in_words(name: str) -> None:
    assert "key_padding_mask" in inspect.signature(find(name).cls.forward).parameters
    form, words = REFUSING.get(name, ({}, ""))
    block, inputs = block_and_series(name, **form)
    (x, *_) = inputs.values()
    padded = torch.zeros(x.shape[:2], dtype=torch.bool)
    if words:
        with pytest.raises(ValueError, match=words):
            block(**inputs, key_padding_mask=padded)
    else:
        assert_close(block(**inputs, key_padding_mask=padded), block(**inputs))
    with pytest.raises((TypeError, ValueError), match="key_padding_mask"):
        block(**inputs, key_padding_mask=padded.float())


@pytest.mark.parametrize(
    "name, form, count",
    [
        ("m_gtu", {"gtu_only": True, "kernels": [3]}, lambda n: n - 2),
        ("m_gtu", {"gtu_only": True, "kernels": [3], "stride": 2}, lambda n: (n - 3) // 2 + 1),
        ("dilated_inception", {"padding": "valid"}, lambda n: n - 6),
    ],
)
def test_shorter_outputs_begin_with_a_samples_own(
    name: str, form: dict[str, Any], count: Any
) -> None:
    block, inputs = block_and_series(name, **form)
    y = block(**inputs, key_padding_mask=mask())
    for row, steps in enumerate(COUNT.values()):
        own = count(len(steps))
        assert_close(y[row, :own], alone(block, inputs, row, steps)[0])
        assert not y[row, own:].any()


def test_the_pyramid_of_a_shorter_sample_is_its_own_in_training() -> None:
    block, inputs = block_and_series("pyraformer")
    x, level = inputs["x"], block.cscm.levels[0]
    before = level.norm.running_mean.clone()
    rows = [x[row, list(steps)] for row, steps in enumerate(COUNT.values())]
    windows = torch.cat([block.cscm.down(r)[: len(r) // 3 * 3].unflatten(0, (-1, 3)) for r in rows])
    means = level.conv(windows.mT)[..., 0].mean(0)
    block.train()(x, key_padding_mask=mask())
    assert_close(level.norm.running_mean, 0.9 * before + 0.1 * means)


def test_a_sample_too_short_for_its_pyramid_is_refused() -> None:
    block, inputs = block_and_series("pyraformer")
    padded = mask()
    padded[1, 2:] = True
    with pytest.raises(ValueError, match=r"a sample 2 steps.*at least 6"):
        block(**inputs, key_padding_mask=padded)


@pytest.mark.parametrize("causal", [False, True])
def test_weights_of_trend_aware_are_in_the_order_of_the_steps(causal: bool) -> None:
    form = {"mode": "causal", "causal": True} if causal else {}
    block, inputs = block_and_series("trend_aware", **form)
    y, weights = block(**inputs, key_padding_mask=mask(), need_weights=True)
    assert_close(y, block(**inputs, key_padding_mask=mask()))
    for row, steps in enumerate(COUNT.values()):
        index = torch.tensor(list(steps))
        own = block(inputs["query"][row, index], need_weights=True)[1]
        assert_close(weights[row][:, index][:, :, index], own)
        assert_close(weights[row].sum(), own.sum())


def test_padding_of_a_key_of_its_own_leaves_every_query() -> None:
    block, inputs = block_and_series("trend_aware")
    query, key = torch.randn(len(COUNT), 5, 64, dtype=torch.float64), inputs["query"]
    y = block(query, key, key_padding_mask=mask())
    for row, steps in enumerate(COUNT.values()):
        assert_close(y[row], block(query[row], key[row, list(steps)]))
    causal = block_and_series("trend_aware", mode="causal", causal=True)[0]
    with pytest.raises(ValueError, match="pass the query alone"):
        causal(key, key.clone(), key_padding_mask=mask())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("conv", [1, 4])
def test_a_stream_goes_on_where_a_whole_call_ended(padded: bool, conv: int) -> None:
    block, inputs = block_and_series("mamba", conv=conv)
    x, hidden = inputs["x"], mask() if padded else None
    y, state = block(x, key_padding_mask=hidden, return_state=True)
    assert_close(y, block(x, key_padding_mask=hidden))
    more = torch.randn(len(COUNT), 3, 64, dtype=torch.float64)
    for i in range(3):
        after, state = block.step(more[:, i], state)
        for row, steps in enumerate(COUNT.values()):
            own = x[row, list(steps)] if padded else x[row]
            assert_close(after[row], block(torch.cat((own, more[row, : i + 1])))[-1])


def test_the_state_after_a_whole_call_has_gradients() -> None:
    block, inputs = block_and_series("mamba")
    _, state = block(inputs["x"].requires_grad_(), return_state=True)
    (state.inputs.sum() + state.hidden.square().sum()).backward()
    assert inputs["x"].grad.isfinite().all() and inputs["x"].grad.any()
