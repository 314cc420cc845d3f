"""Channel attention: the authors' formula with its inverted sign, and large energies."""

import pytest
import torch
from formulas import channel_attention
from torch import Tensor

import attnzoo
from attnzoo.autograd import reference_forms
from attnzoo.testing.closeness import assert_close

from contract import made, step


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (14, 9)])
@pytest.mark.parametrize("c", [1, 7, 32])
def test_equals_the_formula(c: int, size: tuple[int, int]) -> None:
    extent = attnzoo.InputSize(2, 1, *size)
    _, block, inputs = made("danet_channel", extent, torch.float64, c=c)
    block.gamma.data.fill_(0.7)
    inputs["x"] /= size[0] * size[1]  # so that the attention is not one-hot
    wanted = step(block, inputs, lambda leaves: channel_attention(leaves["x"], block.gamma))
    assert_close(step(block, inputs), wanted)
    with reference_forms():
        assert_close(step(block, inputs), wanted)


@pytest.mark.parametrize("std", [3.0, 30.0])
def test_float16_energies_do_not_overflow(std: float) -> None:
    block = attnzoo.build("danet_channel", 32, dtype=torch.float16)
    block.gamma.data.fill_(0.5)
    x = (std * torch.randn(1, 32, 97, 97)).half()
    assert (x.double().square().sum((2, 3)) > torch.finfo(x.dtype).max).any()
    found = step(block, {"x": x})
    assert all(t.isfinite().all() for t in [*found["outputs"], *found["inputs"]])
    wanted = channel_attention(x.double(), block.gamma.double())
    assert_close(found["outputs"][0], wanted, torch.float16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_does_not_round_the_energies(dtype: torch.dtype) -> None:
    _, block, inputs = made("danet_channel")
    wanted = step(block, inputs)

    def run(leaves: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype):
            return block(leaves["x"])

    assert_close(step(block, inputs, run), wanted)


def test_a_new_block_is_the_identity() -> None:
    x = torch.randn(2, 16, 9, 7)
    assert torch.equal(attnzoo.build("danet_channel", 16)(x), x)


def test_no_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="c=0 must be at least 1"):
        attnzoo.build("danet_channel", c=0)


def test_multiply_adds() -> None:
    block = attnzoo.build("danet_channel", 37)
    assert block.macs(attnzoo.InputSize(3, 2, 13, 11)) == 2 * 37**2 * 143
