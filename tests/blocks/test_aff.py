"""MS-CAM, AFF and iAFF against the authors' formulas, and weights of an unused second context."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnzoo

from contract import assert_steps_equal, made
from distributions import assert_uniform

NAMES = ("ms_cam", "aff", "iaff")


def chain(layers: nn.Module, u: Tensor) -> Tensor:
    for conv, bn, last in ((layers.reduce, layers.bn1, False), (layers.expand, layers.bn2, True)):
        logits = torch.einsum("bchw,oc->bohw", u, conv.weight.flatten(1))
        u = bn(logits + conv.bias[:, None, None])
        u = u if last else u.clamp(min=0)
    return u


def gate(u: Tensor, near: nn.Module, far: nn.Module) -> Tensor:
    mean = (u.sum((2, 3)) / (u.shape[2] * u.shape[3]))[:, :, None, None]
    return 1 / (1 + (-chain(near, u) - chain(far, mean)).exp())


def ms_cam(block: nn.Module, x: Tensor) -> Tensor:
    return x * gate(x, block.local_att, block.global_att)


def aff(block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    w = gate(x + y, block.local_att, block.global_att)
    return 2 * x * w + 2 * y * (1 - w)


def iaff(block: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    w1 = gate(x + y, block.local_att, block.global_att)
    v = x * w1 + y * (1 - w1)
    again = block.global_att if block.global_att2 is None else block.global_att2
    w2 = gate(v, block.local_att2, again)
    return x * w2 + y * (1 - w2)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [(1, 1), (3, 8)], ids=str)
@pytest.mark.parametrize(
    ("formula", "config"),
    [
        (ms_cam, {"c": 13}),
        (aff, {"c": 9, "reduction": 2}),
        (iaff, {"c": 8}),
        (iaff, {"c": 8, "shared_global": True}),
    ],
)
def test_equals_the_authors_formulas(
    formula: Any, config: dict[str, Any], size: tuple[int, int], train: bool
) -> None:
    at = attnzoo.InputSize(batch=3, height=size[0], width=size[1])
    _, block, inputs = made(formula.__name__, at, torch.float64, train, **config)
    assert_steps_equal(block, inputs, lambda leaves: formula(block, **leaves))


def test_the_shared_context_updates_its_statistics_twice_per_step() -> None:
    block = attnzoo.build("iaff", c=8, shared_global=True)
    block(torch.randn(2, 8, 3, 3), torch.randn(2, 8, 3, 3))
    assert block.global_att.bn1.num_batches_tracked == 2
    assert block.local_att.bn1.num_batches_tracked == 1


def test_checkpoints_with_a_second_global_context_load() -> None:
    whole = attnzoo.build("iaff", c=8)
    order = {"reduce": 0, "bn1": 1, "expand": 3, "bn2": 4}
    theirs = {}
    for key, value in whole.state_dict().items():
        att, layer, name = key.split(".")
        theirs[f"{att}.{order[layer] + att.startswith('global')}.{name}"] = value
    inputs = torch.randn(2, 2, 8, 3, 3).unbind()
    twin = attnzoo.from_upstream("iaff", theirs, c=8)
    assert torch.equal(twin.eval()(*inputs), whole.eval()(*inputs))
    shared = attnzoo.from_upstream("iaff", theirs, c=8, shared_global=True).eval()
    assert not torch.equal(shared(*inputs), whole(*inputs))
    assert len(shared.state_dict()) < len(theirs)
    del theirs["global_att2.4.bias"]
    with pytest.raises(ValueError, match=r"missing: global_att2\.4\.bias"):
        attnzoo.from_upstream("iaff", theirs, c=8)


@pytest.mark.parametrize(
    ("name", "params", "times"), [("ms_cam", 4_576, 1), ("aff", 4_576, 1), ("iaff", 9_152, 2)]
)
def test_counts_and_values_by_hand(name: str, params: int, times: int) -> None:
    block = attnzoo.build(name, c=64)
    assert sum(p.numel() for p in block.parameters()) == params
    assert block.macs(attnzoo.InputSize(3, 1, 5, 7)) == times * 2 * 64 * 16 * (35 + 1)
    assert_uniform(block.local_att.reduce.weight, 64**-0.5)
    assert_uniform(block.global_att.expand.weight, 16**-0.5)


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name: str) -> None:
    with pytest.raises(ValueError, match="reduction=4 leaves no channel of c=3"):
        attnzoo.build(name, c=3)
    block, count = attnzoo.build(name, c=8), 1 + (name != "ms_cam")
    with pytest.raises(ValueError, match=r"BatchNorm 1 value per channel.*larger batch"):
        block(*[torch.ones(1, 8, 5, 5)] * count)
    assert block.eval()(*[torch.ones(1, 8, 5, 5)] * count).isfinite().all()
    if count == 2:
        with pytest.raises(ValueError, match=r"y has shape \(1, 8, 5, 1\), x \(1, 8, 5, 5\)"):
            block(torch.ones(1, 8, 5, 5), torch.ones(1, 8, 5, 1))
