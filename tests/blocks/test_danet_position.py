"""Position attention: the authors' formulas, and the N x N map that is never saved."""

from typing import Any

import pytest
import torch
from formulas import position_attention
from torch import Tensor, nn

import attnzoo
from attnzoo.autograd import danet_position, reference_forms
from attnzoo.testing.closeness import assert_close

from contract import made, step
from distributions import assert_default

LARGE = attnzoo.InputSize(batch=2, height=24, width=24)
UNEVEN = attnzoo.InputSize(batch=3, height=19, width=15)


@pytest.mark.parametrize("extent", [LARGE, UNEVEN, attnzoo.InputSize(1, 1, 3, 5)], ids=str)
@pytest.mark.parametrize("config", [{"c": 16}, {"c": 13, "reduction": 3}, {"c": 6, "reduction": 1}])
def test_equals_the_formula(extent: attnzoo.InputSize, config: dict[str, int]) -> None:
    _, block, inputs = made("danet_position", extent, torch.float64, **config)
    wanted = step(block, inputs, lambda leaves: position_attention(leaves["x"], block))
    assert_close(step(block, inputs), wanted)
    with reference_forms():
        assert_close(step(block, inputs), wanted)


@pytest.mark.parametrize("size", [24, 32])
@pytest.mark.parametrize("low", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_no_map_of_all_pairs_is_saved(size: int, low: torch.dtype | None) -> None:
    _, block, inputs = made("danet_position", attnzoo.InputSize(2, 1, size, size))
    kept: list[int] = []
    leaf = inputs["x"].requires_grad_()
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ),
        torch.autocast("cpu", low, enabled=low is not None),
    ):
        y = block(leaf)
    y.sum().backward()
    assert kept
    assert max(kept) < size**4
    assert leaf.grad is not None


def without_key_bias(found: dict[str, Any]) -> dict[str, Any]:
    """A step without the gradient of the key bias, which is zero except for rounding."""
    kept = {k: v for k, v in found["parameters"].items() if k != "key_conv.bias"}
    return {**found, "parameters": kept}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_hand_written_passes_in_half_precision(dtype: torch.dtype) -> None:
    _, block, inputs = made("danet_position")
    wanted = step(block, inputs)
    found = step(block.to(dtype), {"x": inputs["x"].to(dtype)})
    assert found["outputs"][0].dtype == dtype
    assert_close(*map(without_key_bias, (found, wanted)), dtype)


def test_hand_written_passes_under_autocast_keep_the_residual_exact() -> None:
    _, block, inputs = made("danet_position", LARGE)
    wanted = step(block, inputs)

    def run(leaves: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return block(leaves["x"])

    found = step(block, inputs, run)
    assert found["outputs"][0].dtype == torch.float32
    assert_close(*map(without_key_bias, (found, wanted)), torch.bfloat16)
    nn.init.zeros_(block.gamma)
    assert torch.equal(run(inputs), inputs["x"])


@pytest.mark.parametrize("extent", [LARGE, attnzoo.InputSize(2, 1, 6, 6)], ids=["large", "small"])
def test_float16_energies_do_not_overflow(extent: attnzoo.InputSize) -> None:
    _, block, inputs = made("danet_position", extent)
    with torch.no_grad():
        block.query_conv.bias.fill_(200)
        block.key_conv.bias.fill_(200)  # energies about 8 * 200 * 200, beyond float16
    found = step(block.half(), {"x": inputs["x"].half()})
    assert all(t.isfinite().all() for t in [*found["outputs"], *found["inputs"]])


def test_hand_written_passes_with_odd_strides_and_empty_batches() -> None:
    _, block, inputs = made("danet_position", UNEVEN)
    wanted = step(block, inputs)
    assert_close(step(block, {"x": inputs["x"].mT.contiguous().mT}), wanted)
    last = inputs["x"].contiguous(memory_format=torch.channels_last)
    assert_close(step(block, {"x": last}), wanted)
    assert step(block, {"x": inputs["x"][:0]})["outputs"][0].shape == (0, 64, 19, 15)


def test_gradients_are_summed_over_chunks_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal energies give equal weights, which sum to one over all queries."""
    monkeypatch.setattr(danet_position, "CHUNK_NUMEL", 1)  # 64 queries in each chunk
    q = torch.zeros(1, 2, 48 * 64, dtype=torch.bfloat16)
    v, gamma = torch.ones_like(q), torch.ones(1, dtype=torch.bfloat16)
    *_, dv, _ = danet_position.pair.backward((True,) * 4, (q, q, v, gamma), (), torch.ones_like(v))
    assert (dv - 1).abs().max() < 2**-7


def test_hand_written_gradients_are_derivatives() -> None:
    _, block, inputs = made("danet_position", attnzoo.InputSize(1, 1, 3, 4), torch.float64, c=8)
    points = [inputs["x"].requires_grad_(), *block.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: block(x), points, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: block(x), points, fast_mode=True, atol=1e-4)


def test_a_new_block_is_the_identity_and_key_biases_have_no_effect() -> None:
    block = attnzoo.build("danet_position", 16)
    x = torch.randn(2, 16, 17, 17)
    assert torch.equal(block(x), x)
    _, block, inputs = made("danet_position", LARGE, torch.float64)
    grads = step(block, inputs)["parameters"]
    assert grads["key_conv.bias"].abs().max() < 1e-10 * grads["query_conv.bias"].abs().max()


def test_a_width_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reduction=8 leaves no channel of c=7"):
        attnzoo.build("danet_position", c=7)


def test_layers_start_as_torchs_own_and_gamma_at_zero() -> None:
    blocks = [attnzoo.build("danet_position", 64) for _ in range(8)]
    assert_default(blocks, but=["gamma"])
    assert not blocks[0].gamma.any()


def test_hooks_of_layers_run() -> None:
    """Hooks and adapters of a projection take effect."""
    _, block, inputs = made("danet_position", attnzoo.InputSize(1, 1, 3, 5))
    before = block(inputs["x"])
    for layer in (block.query_conv, block.key_conv, block.value_conv):
        handle = layer.register_forward_hook(lambda module, args, output: 2 * output)
        assert not torch.allclose(block(inputs["x"]), before)
        handle.remove()


def test_multiply_adds() -> None:
    block = attnzoo.build("danet_position", 37, reduction=5)
    macs = 143 * (2 * 37 * 7 + 37**2) + 143**2 * (7 + 37)
    assert block.macs(attnzoo.InputSize(3, 2, 13, 11)) == macs
