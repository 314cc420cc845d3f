"""pyraformer_cscm: all its kinds against the formulas, its sizes and errors."""

import pytest
import torch
from torch.nn import functional as F

import attnzoo
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.inputs import randomize_parameters

from contract import assert_takes_float32_under_autocast
from distributions import assert_uniform


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("windows", [(2, 2, 2), (5,), (3, 1, 2, 2)])
@pytest.mark.parametrize("kind", ["bottleneck", "conv", "max", "avg"])
def test_equals_the_formulas(kind: str, windows: tuple[int, ...], train: bool) -> None:
    block = attnzoo.build("pyraformer_cscm", c=8, windows=windows, kind=kind).double().train(train)
    randomize_parameters(block)
    x = torch.randn(3, 29, 8, dtype=torch.float64, requires_grad=True)
    t = block.down(x).mT if kind == "bottleneck" else x.mT
    levels = []
    for i, window in enumerate(windows):
        if kind == "max":
            t = F.max_pool1d(t, window)
        elif kind == "avg":
            t = F.avg_pool1d(t, window)
        else:
            level = block.levels[i]
            mean, var = level.norm.running_mean.clone(), level.norm.running_var.clone()
            t = level.conv(t)
            t = F.elu(F.batch_norm(t, mean, var, level.norm.weight, level.norm.bias, train))
        levels.append(t)
    coarse = torch.cat(levels, 2).mT
    coarse = block.up(coarse) if kind == "bottleneck" else coarse
    wanted = block.norm(torch.cat((x, coarse), 1))
    found = block(x)
    assert_close(found, wanted)
    grad = torch.randn_like(wanted)
    leaves = [x, *block.parameters()]
    assert_close(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(wanted, leaves, grad)
    )


@pytest.mark.parametrize("kind", ["bottleneck", "conv", "max", "avg"])
@pytest.mark.parametrize("lead", [(), (2, 3), (0,)])
def test_any_leading_axes_and_remaining_steps(lead: tuple[int, ...], kind: str) -> None:
    block = attnzoo.build("pyraformer_cscm", c=8, windows=[4, 2], kind=kind).eval()
    assert block(torch.randn(*lead, 21, 8)).shape == (*lead, 21 + 5 + 2, 8)


@pytest.mark.parametrize("kind", ["bottleneck", "conv"])
def test_initial_distributions(kind: str) -> None:
    """torch's default everywhere, as in the authors' modules."""
    block = attnzoo.build("pyraformer_cscm", c=128, windows=(4, 2), kind=kind, bottleneck=96)
    width = 96 if kind == "bottleneck" else 128
    for window, level in zip((4, 2), block.levels, strict=True):
        assert_uniform(level.conv.weight.detach(), (width * window) ** -0.5)
        assert_uniform(level.conv.bias.detach(), (width * window) ** -0.5)
        assert (level.norm.eps, level.norm.momentum) == (1e-5, 0.1)
    for norm in (block.norm, *(level.norm for level in block.levels)):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))
    if kind == "bottleneck":
        for layer, bound in ((block.down, 128**-0.5), (block.up, 96**-0.5)):
            assert_uniform(layer.weight.detach(), bound)
            assert_uniform(layer.bias.detach(), bound)


def test_closed_form_at_an_odd_size() -> None:
    """21 steps give levels of 5 and 2 nodes."""
    for kind, bottleneck, macs in (
        ("bottleneck", 3, 28 * 8 * 3 + 5 * 9 * 4 + 2 * 9 * 2),
        ("conv", None, 5 * 64 * 4 + 2 * 64 * 2),
        ("avg", None, 0),
    ):
        config = {"c": 8, "windows": (4, 2), "kind": kind, "bottleneck": bottleneck}
        block = attnzoo.build("pyraformer_cscm", **config)
        assert block.macs(attnzoo.InputSize(steps=21)) == macs


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_accept_float32_inputs_under_autocast(half: torch.dtype) -> None:
    block = attnzoo.build("pyraformer_cscm", c=8, windows=(3, 2))
    assert_takes_float32_under_autocast(block, torch.randn(2, 13, 8), half)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"no channel; give bottleneck=1, or c=4 or more"):
        attnzoo.build("pyraformer_cscm", c=3)
    attnzoo.build("pyraformer_cscm", c=3, kind="conv")
    with pytest.raises(ValueError, match=r"windows\[0\]=0 must be at least 1"):
        attnzoo.build("pyraformer_cscm", c=8, windows=[0])
    with pytest.raises(ValueError, match=r"x has 7 steps; windows=\(4, 2\) need at least 8"):
        attnzoo.build("pyraformer_cscm", c=8, windows=[4, 2])(torch.randn(1, 7, 8))
    block = attnzoo.build("pyraformer_cscm", c=8, windows=[4, 2])
    with pytest.raises(
        ValueError, match=r"x of shape \(1, 8, 8\) .* BatchNorm 1 value .* larger batch or T, or"
    ):
        block(torch.randn(1, 8, 8))
    assert block(torch.randn(2, 8, 8)).shape == (2, 11, 8)
