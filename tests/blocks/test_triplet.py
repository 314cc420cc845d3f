"""Triplet attention against the authors' formulas: ties, namings, copies of x, large inputs."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from formulas import max_mean_gate
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.testing.closeness import assert_close
from attnzoo.testing.work import saved_bytes

from contract import assert_large_sums_fit, assert_steps_equal, made
from distributions import assert_default


def authors(block: nn.Module, x: Tensor) -> Tensor:
    cw = max_mean_gate(x.permute(0, 2, 1, 3).contiguous(), block.cw).permute(0, 2, 1, 3)
    hc = max_mean_gate(x.permute(0, 3, 2, 1).contiguous(), block.hc).permute(0, 3, 2, 1)
    if block.hw is None:
        return (cw.contiguous() + hc.contiguous()) / 2
    return (max_mean_gate(x, block.hw) + cw.contiguous() + hc.contiguous()) / 3


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "config",
    [{"c": 16}, {"c": 5, "kernel_size": 3}, {"c": 9, "kernel_size": 1, "spatial": False}],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (13, 1), (13, 11), (57, 88)], ids=str)
def test_equals_the_authors_formulas(
    config: dict[str, Any], size: tuple[int, int], train: bool
) -> None:
    extent = attnzoo.InputSize(batch=3, height=size[0], width=size[1])
    _, block, inputs = made("triplet", extent, torch.float64, train, **config)
    assert_steps_equal(block, inputs, lambda leaves: authors(block, leaves["x"]))


@pytest.mark.parametrize("plain", [False, True], ids=["by hand", "plain"])
def test_one_index_gets_the_gradient_of_a_tie(plain: bool) -> None:
    _, block, inputs = made("triplet", attnzoo.InputSize(height=57, width=80), torch.float64, c=16)
    x = inputs["x"].round().relu()  # many ties, whole rows, columns and pixels of zeros among them
    x[:, 3], x[:, :, 2], x[..., 4] = 0, 0, 0
    with reference_forms() if plain else nullcontext():
        assert_steps_equal(block, {"x": x}, lambda leaves: authors(block, leaves["x"]))


@pytest.mark.parametrize("spatial", [True, False])
def test_both_namings_of_the_authors_load(spatial: bool) -> None:
    _, block, inputs = made("triplet", spatial=spatial)
    own = block.state_dict()
    for names in (("cw.conv", "hc.conv", "hw.conv"), OLD_NAMES):
        renaming = dict(zip(("cw", "hc", "hw"), names, strict=True))
        theirs = {f"{renaming[k[:2]]}{k[2:]}": v for k, v in own.items()}
        for prefix in ("", "layer1.0.attention."):
            weights = {prefix + k: v for k, v in theirs.items()}
            twin = attnzoo.from_upstream("triplet", weights, c=64, spatial=spatial).eval()
            assert_close(twin(inputs["x"]), block(inputs["x"]))


OLD_NAMES = ("ChannelGateH.spatial", "ChannelGateW.spatial", "SpatialGate.spatial")


class Copies(TorchDispatchMode):
    """Records the operations that copy a tensor of `size` elements."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copying = ("clone", "copy", "contiguous", "permute_copy", "transpose_copy", "_to_copy")
        if func.overloadpacket.__name__.strip("_") in copying and result.numel() >= self.size:
            self.found.append(str(func))
        return result


def test_the_input_is_neither_copied_nor_saved_again() -> None:
    _, block, inputs = made("triplet", attnzoo.InputSize(height=48, width=40), train=True)
    x = inputs["x"].requires_grad_()
    with Copies(x.numel()) as copies:
        block(x).backward(torch.ones_like(x))
    assert not copies.found
    assert saved_bytes(block, inputs) < 0.8 * x.nbytes  # the maps alone


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_do_not_overflow_in_half_precision(dtype: torch.dtype) -> None:
    assert_large_sums_fit("triplet", dtype)


def test_any_number_of_channels_works_and_their_order_matters() -> None:
    _, block, inputs = made("triplet")
    x = inputs["x"]
    assert block(x[:, :5]).shape == (2, 5, 14, 14)
    assert not torch.allclose(block(x.flip(1)).flip(1), block(x))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="kernel_size=4 must be odd; the nearest are 3, 5"):
        attnzoo.build("triplet", c=32, kernel_size=4)
    with pytest.raises(ValueError, match="c=0 must be at least 1"):
        attnzoo.build("triplet", c=0)
    block = attnzoo.build("triplet", c=8)
    for shape in ((1, 8, 1, 1), (1, 1, 5, 1), (1, 1, 1, 5)):  # each leaves another gate one value
        with pytest.raises(ValueError, match="BatchNorm 1 value per channel"):
            block(torch.randn(shape))
    assert attnzoo.build("triplet", c=8, spatial=False)(torch.randn(1, 8, 1, 1)).isfinite().all()
    with pytest.raises(ValueError, match="layout 'image' is"):
        block(torch.randn(8, 4, 4))


def test_layers_start_as_torchs_own() -> None:
    blocks = [attnzoo.build("triplet", 8) for _ in range(8)]
    assert_default(blocks)
    assert all(gate.bn.momentum == 0.01 for gate in blocks[0].children())


@pytest.mark.parametrize(("spatial", "plane"), [(True, 143), (False, 0)])
def test_multiply_adds(spatial: bool, plane: int) -> None:
    block = attnzoo.build("triplet", 37, kernel_size=5, spatial=spatial)
    assert block.macs(attnzoo.InputSize(3, 2, 13, 11)) == 50 * (37 * 11 + 37 * 13 + plane)
