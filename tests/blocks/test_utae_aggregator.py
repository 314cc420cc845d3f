"""U-TAE's aggregator against its formula, at sizes where the authors' code runs and elsewhere."""

import pytest
import torch
from torch import Tensor

import attnzoo
from attnzoo.blocks.utae_aggregator import resize
from attnzoo.testing.closeness import assert_close

MODES = ("att_group", "att_mean", "mean")


def linear(out: int, size: int) -> Tensor:
    """(out, size): bilinear interpolation along an axis, half-pixel centers."""
    at = ((torch.arange(out, dtype=torch.float64) + 0.5) * size / out - 0.5).clamp(0, size - 1)
    return (1 - (at[:, None] - torch.arange(size)).abs()).clamp(min=0)


def averaging(out: int, size: int) -> Tensor:
    cell = size // out
    return (torch.arange(size) // cell == torch.arange(out)[:, None]).double() / cell


def resized(weights: Tensor, size: tuple[int, int], always_linear: bool = False) -> Tensor:
    rows, columns = (
        linear(n, m) if always_linear or n > m else averaging(n, m)
        for n, m in zip(size, weights.shape[-2:], strict=True)
    )
    return rows @ weights @ columns.T


def formula(x: Tensor, attn: Tensor | None, padded: Tensor | None, mode: str) -> Tensor:
    """Sample by sample, step by step."""
    b, steps, c, *size = x.shape
    out = torch.zeros(b, c, *size, dtype=x.dtype)
    for i in range(b):
        kept = [t for t in range(steps) if padded is None or not padded[i, t]]
        for t in kept:
            if attn is None or mode == "mean":
                out[i] += x[i, t] / len(kept)
            elif mode == "att_mean":
                out[i] += x[i, t] * resized(attn[:, i, t].mean(0), size, True)
            else:
                heads = attn.shape[0]
                for g in range(heads):
                    group = slice(g * c // heads, (g + 1) * c // heads)
                    out[i, group] += x[i, t, group] * resized(attn[g, i, t], size)
    return out


def made(size: tuple[int, int], low: tuple[int, int], heads: int = 2) -> tuple[Tensor, Tensor]:
    x = torch.randn(3, 4, 6, *size, dtype=torch.float64)
    attn = torch.randn(heads, 3, 4, *low, dtype=torch.float64).softmax(2)
    return x, attn


# larger, of another ratio, equal, smaller, larger along one axis only; 1, and partial cells
SIZES = [
    ((8, 6), (4, 3)), ((9, 16), (4, 8)), ((4, 16), (2, 8)), ((5, 3), (5, 3)),
    ((2, 3), (4, 6)), ((8, 2), (4, 4)), ((1, 1), (3, 2)), ((2, 2), (5, 5)), ((1, 9), (1, 5)),
]  # fmt: skip


@pytest.mark.parametrize("padding", [False, True], ids=["", "padded"])
@pytest.mark.parametrize(("size", "low"), SIZES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_equals_the_formula(
    mode: str, size: tuple[int, int], low: tuple[int, int], padding: bool
) -> None:
    x, attn = made(size, low)
    padded = torch.zeros(3, 4, dtype=torch.bool)
    padded[0, 1] = padded[1, 2:] = padded[2] = padding
    block = attnzoo.build("utae_aggregator", mode=mode)
    found = block(x, attn, key_padding_mask=padded if padding else None)
    assert_close(found, formula(x, attn, padded if padding else None, mode))
    if padding:
        assert not found[2].any()  # a fully padded sample
        x[padded] = 1e6
        assert_close(block(x, attn, key_padding_mask=padded), found)


@pytest.mark.parametrize("mode", MODES)
def test_a_padded_sample_does_not_depend_on_the_batch(mode: str) -> None:
    x, attn = made((8, 6), (4, 3))
    padded = torch.tensor([False, False, True, True]).expand(3, 4)
    block = attnzoo.build("utae_aggregator", mode=mode)
    assert_close(block(x, attn, key_padding_mask=padded), block(x[:, :2], attn[:, :, :2]))
    steps = padded[0]  # a mask for every sample
    assert_close(block(x, attn, key_padding_mask=steps), block(x[:, :2], attn[:, :, :2]))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_reach_the_inputs_that_are_used(mode: str) -> None:
    x, attn = (t[:1, :2].requires_grad_() for t in made((4, 3), (2, 3)))
    attn = attn[:, :1, :2].detach().requires_grad_()
    mask = torch.tensor([[False, True]])
    block = attnzoo.build("utae_aggregator", mode=mode)

    def call(x: Tensor, attn: Tensor) -> Tensor:
        return block(x, attn, key_padding_mask=mask)

    x = x.detach().requires_grad_()
    assert torch.autograd.gradcheck(call, (x, attn))
    block(x, attn, key_padding_mask=mask).sum().backward()
    assert x.grad is not None
    assert x.grad[:, 0].all()
    assert not x.grad[:, 1].any()


def test_the_dtype_is_kept_with_and_without_padding() -> None:
    x, attn = (t.bfloat16() for t in made((8, 6), (4, 3)))
    for mode in MODES:
        block = attnzoo.build("utae_aggregator", mode=mode)
        for mask in (None, torch.zeros(3, 4, dtype=torch.bool)):
            assert block(x, attn, key_padding_mask=mask).dtype == torch.bfloat16


def test_resizing_preserves_uniform_weights() -> None:
    weights = torch.full((2, 5, 3, 4), 0.2, dtype=torch.float64)
    for size in ((7, 9), (3, 2), (1, 8)):
        assert_close(resize(weights, *size), torch.full((2, 5, *size), 0.2, dtype=torch.float64))


def test_macs_are_those_of_the_weighted_sum() -> None:
    size = attnzoo.InputSize(batch=3, steps=5, height=7, width=9)
    assert attnzoo.build("utae_aggregator", c=8).macs(size) == 5 * 8 * 7 * 9
    assert attnzoo.build("utae_aggregator").macs(size) == 5 * 7 * 9


def test_refusals() -> None:
    x, attn = made((8, 6), (4, 3))
    group = attnzoo.build("utae_aggregator", c=6)
    for bad, words in (
        ((x, None), r"attn is missing: mode='att_group' needs weights \(heads, 3, 4, h, w\)"),
        ((x, attn[:, :2]), r"for this x it must be \(heads, 3, 4, h, w\)"),
        ((x, attn[:, :, :3]), r"for this x it must be"),
        ((x, torch.cat((attn, attn))), "attn has 4 heads, which must divide the 6 channels of x"),
        ((x, attn.float()), "attn is torch.float32"),
        ((x[:, :, :5], attn), "x has 5 channels"),
        ((x[..., :4, :4], made((8, 6), (6, 4))[1]), "6 x 4 cannot be averaged to the 4 x 4 of x"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            group(*bad)
    for mask, words in (
        (torch.zeros(3, 4), "key_padding_mask is torch.float32; it must be torch.bool"),
        (torch.zeros(4, 3, dtype=torch.bool), r"must be \(3, 4\) or \(4,\)"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            group(x, attn, key_padding_mask=mask)
    with pytest.raises(ValueError, match="did you mean 'att_group'"):
        attnzoo.build("utae_aggregator", mode="att_groups")
