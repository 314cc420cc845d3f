"""The checks of arguments, one by one: what they accept, and every word of what they refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnzoo.validation import check, messages, signature, types

IMAGE, SERIES = torch.zeros(2, 3, 4, 5), torch.zeros(2, 6, 3)
MASK = torch.zeros(2, 6, dtype=torch.bool)
HALF = nn.Linear(3, 3).half()


def nested() -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(4, 3)], layout=torch.jagged)


def made_in_inference_mode() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(2, 3, 4, 5)


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a word far from any": (
        lambda: check.choice("mode", "zzz", ("mean", "max")),
        ValueError,
        "mode='zzz' must be one of 'mean', 'max'",
    ),
    "a word near one": (
        lambda: check.choice("mode", "meen", ("mean", "max")),
        ValueError,
        "mode='meen' must be one of 'mean', 'max'; did you mean 'mean'?",
    ),
    "no word": (
        lambda: check.choice("mode", 3, ("mean",)),  # type: ignore[arg-type]
        ValueError,
        "mode=3 must be one of 'mean'",
    ),
    "a bool for a number": (
        lambda: check.positive(c=True),
        TypeError,
        "c=True must be an int, not bool",
    ),
    "a float for a number": (
        lambda: check.positive(c=2.0),  # type: ignore[arg-type]
        TypeError,
        "c=2.0 must be an int, not float",
    ),
    "zero": (lambda: check.positive(c=1, heads=0), ValueError, "heads=0 must be at least 1"),
    "one size": (
        lambda: check.sizes(kernels=3),  # type: ignore[arg-type]
        TypeError,
        "kernels=3 must be a tuple of ints, such as (3, 5)",
    ),
    "no sizes": (
        lambda: check.sizes(kernels=()),
        ValueError,
        "kernels=() is empty; it needs at least one int, such as (3,)",
    ),
    "a size of zero": (
        lambda: check.sizes(kernels=(3, 0)),
        ValueError,
        "kernels[1]=0 must be at least 1",
    ),
    "no divisor, between two": (
        lambda: check.divides(of="c", by="heads", c=12, heads=5),
        ValueError,
        "heads=5 must divide c=12; the nearest that do are 4, 6",
    ),
    "no divisor, above all": (
        lambda: check.divides(of="c", by="heads", c=12, heads=13),
        ValueError,
        "heads=13 must divide c=12; the nearest is 12",
    ),
    "a divisor of zero": (
        lambda: check.divides(of="c", by="heads", c=12, heads=0),
        ValueError,
        "heads=0 must be at least 1",
    ),
    "a reduction to nothing": (
        lambda: check.reduced(3, 4, name="width"),
        ValueError,
        "reduction=4 leaves no channel of width=3 (3 // 4 = 0); take reduction=3 or less, or "
        "width=4 or more",
    ),
    "a number for a flag": (
        lambda: check.flag(bias=1),
        TypeError,
        "bias=1 must be True or False",
    ),
    "no tensor": (
        lambda: check.image([1]),  # type: ignore[arg-type]
        TypeError,
        "x must be a Tensor (B, C, H, W), not list",
    ),
    "a nested tensor": (
        lambda: check.sequence(nested()),
        TypeError,
        "x is nested; it must be dense: pass x.to_padded_tensor(0.0)",
    ),
    "a sparse tensor": (
        lambda: check.image(IMAGE.to_sparse(), name="y"),
        TypeError,
        "y is torch.sparse_coo; it must be dense: pass y.to_dense()",
    ),
    "an uninitialized parameter": (
        lambda: check.token(nn.UninitializedParameter()),
        TypeError,
        "x is uninitialized; it must be a Tensor (..., C)",
    ),
    "an axis too many": (
        lambda: check.image(IMAGE[None]),
        ValueError,
        "x has shape (1, 2, 3, 4, 5); layout 'image' is (B, C, H, W)",
    ),
    "an axis too few": (
        lambda: check.sequence(torch.zeros(3)),
        ValueError,
        "x has shape (3,); layout 'sequence' is (..., T, C)",
    ),
    "tokens for an image": (
        lambda: check.image(torch.zeros(2, 16, 3), 3),
        ValueError,
        "x has shape (2, 16, 3); layout 'image' is (B, C, H, W); of tokens (B, H * W, C) take "
        "x.mT.unflatten(2, (4, 4))",
    ),
    "tokens of no square": (
        lambda: check.image(torch.zeros(2, 15, 3), 3),
        ValueError,
        "x has shape (2, 15, 3); layout 'image' is (B, C, H, W); of tokens (B, H * W, C) take "
        "x.mT.unflatten(2, (H, W))",
    ),
    "other channels": (
        lambda: check.image(IMAGE, 7),
        ValueError,
        "x has 3 channels (axis -3 of shape (2, 3, 4, 5)); the block was built for c=7 and takes "
        "(B, C, H, W)",
    ),
    "channels last": (
        lambda: check.image(IMAGE, 5),
        ValueError,
        "x has 3 channels (axis -3 of shape (2, 3, 4, 5)); the block was built for c=5 and takes "
        "(B, C, H, W); axis 3 has 5: take x.permute(0, 3, 1, 2)",
    ),
    "an empty height": (
        lambda: check.image(torch.zeros(2, 3, 0, 5)),
        ValueError,
        "x has shape (2, 3, 0, 5); axis H of (B, C, H, W) is empty",
    ),
    "an empty width": (
        lambda: check.image_series(torch.zeros(2, 6, 3, 4, 0)),
        ValueError,
        "x has shape (2, 6, 3, 4, 0); axis W of (B, T, C, H, W) is empty",
    ),
    "no steps": (
        lambda: check.sequence(torch.zeros(2, 0, 3)),
        ValueError,
        "x has shape (2, 0, 3); axis T of (..., T, C) is empty",
    ),
    "ints": (
        lambda: check.image(IMAGE.long()),
        TypeError,
        "x is torch.int64; it must be float64, float32, bfloat16 or float16: pass x.float()",
    ),
    "another device": (
        lambda: check.image(IMAGE, 3, torch.zeros(1, device="meta")),
        ValueError,
        "x is on cpu, the block's parameters on meta; move one: block.to('cpu')",
    ),
    "another dtype": (
        lambda: check.sequence(SERIES, 3, HALF),
        TypeError,
        "x is torch.float32, the block's parameters torch.float16; cast one: "
        "x.to(torch.float16), or run under torch.autocast",
    ),
    "a tensor without history": (
        lambda: check.image(made_in_inference_mode(), 3, nn.Conv2d(3, 3, 1)),
        ValueError,
        "x was created in inference_mode, so that autograd cannot save it; pass x.clone(), or "
        "call the block under torch.no_grad()",
    ),
    "one image for a list": (
        lambda: check.listed(IMAGE, 2, name="features"),  # type: ignore[arg-type]
        TypeError,
        "features must be a list of 2 tensors, not Tensor",
    ),
    "a list too short": (
        lambda: check.listed([IMAGE], 2, name="features"),
        ValueError,
        "features has 1 tensors; the block was built for 2",
    ),
    "a mask on another device": (
        lambda: check.padding_mask(
            torch.zeros(2, 6, dtype=torch.bool, device="meta"), (2, 6), SERIES
        ),
        ValueError,
        "key_padding_mask is on meta, x on cpu; move one: key_padding_mask.to(x.device)",
    ),
    "a mask of numbers": (
        lambda: check.padding_mask(torch.zeros(2, 6), (2, 6), SERIES),
        TypeError,
        "key_padding_mask is torch.float32; it must be torch.bool, True where a step is ignored",
    ),
    "a mask of other steps": (
        lambda: check.padding_mask(MASK[:, :5], (2, 6), SERIES),
        ValueError,
        "key_padding_mask has shape (2, 5); it must be (2, 6) or (6,), one for each step of x",
    ),
    "no days": (
        lambda: check.days(None, (2, 6), SERIES, finite=True),
        ValueError,
        "positions is missing: pass the days of the steps, positions=tensor of shape (2, 6), or "
        "build with positions=False",
    ),
    "days of true and false": (
        lambda: check.days(MASK, (2, 6), SERIES, finite=True),
        TypeError,
        "positions is torch.bool; it must be real numbers, one day per step",
    ),
    "a day that is no number": (
        lambda: check.days(torch.full((6,), torch.nan), (2, 6), SERIES, finite=True),
        ValueError,
        "positions has values that are not finite; pass a day for every step",
    ),
    "other shapes": (
        lambda: check.same_shape(y=SERIES, x=IMAGE),
        ValueError,
        "y has shape (2, 6, 3), x (2, 3, 4, 5); they must agree: resize or project one",
    ),
    "other batches": (
        lambda: check.same_batch(source=IMAGE, guidance=IMAGE[:1]),
        ValueError,
        "guidance has 1 samples (shape (1, 3, 4, 5)), source 2 (shape (2, 3, 4, 5)); "
        "they must agree",
    ),
    "one value for BatchNorm": (
        lambda: check.batch_norm(nn.BatchNorm2d(3), 1, IMAGE, grow="image"),
        ValueError,
        "x of shape (2, 3, 4, 5) gives train-mode BatchNorm 1 value per channel, which has no "
        "variance; it needs at least 2: take a larger image, or eval()",
    ),
    "a device of another name": (
        lambda: check.device("device", "gpu"),
        ValueError,
        "torch's name of a GPU is 'cuda'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_say_value_rule_and_remedy(case: str) -> None:
    run, kind, text = REFUSED[case]
    with pytest.raises(kind) as caught:
        run()
    found = str(caught.value)
    assert found.endswith(text) if case == "a device of another name" else found == text


def test_what_is_legal_passes() -> None:
    check.choice("mode", "max", ("mean", "max"))
    check.positive(c=1)
    check.sizes(kernels=[3, 1])
    check.flag(bias=False)
    check.device("device", "cpu")
    assert check.divides(of="c", by="heads", c=12, heads=4) == 3
    assert check.reduced(7, 3) == 2
    assert check.reduced(3, 3) == 1
    check.image(IMAGE, 3, nn.Conv2d(3, 3, 1))
    check.image(IMAGE[:0], 3)
    check.sequence(torch.zeros(4, 2, 6, 3), 3)
    check.token(torch.zeros(3), 3)
    check.image(made_in_inference_mode(), 3, nn.Conv2d(3, 3, 1).requires_grad_(False))
    with torch.no_grad():
        check.image(made_in_inference_mode(), 3, nn.Conv2d(3, 3, 1))
    check.sequence(SERIES, 3, nn.ReLU())
    assert check.padding_mask(None, (2, 6), SERIES) is None
    assert check.days(torch.arange(6), (2, 6), SERIES, finite=True).shape == (2, 6)
    unknown = torch.full((2, 6), torch.inf)
    assert torch.equal(check.days(unknown, (2, 6), SERIES, finite=False), unknown)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_float32_and_its_own_dtype(kind: torch.dtype) -> None:
    other = torch.float16 if kind == torch.bfloat16 else torch.bfloat16
    with torch.autocast("cpu", kind):
        check.sequence(SERIES, 3, nn.Linear(3, 3).to(kind))
        check.sequence(SERIES.to(kind), 3, nn.Linear(3, 3))
        for x, layer in ((SERIES.to(other), nn.Linear(3, 3)), (SERIES, nn.Linear(3, 3).to(other))):
            with pytest.raises(TypeError, match=f"under autocast to {kind} both must be that or"):
                check.sequence(x, 3, layer)
        with pytest.raises(TypeError, match="cast one"):
            check.sequence(SERIES.double(), 3, nn.Linear(3, 3))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int32, torch.int64, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_only_floating_dtypes_that_blocks_compute_in_are_taken(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"x is {dtype}; it must be float64, float32, bfloat16 or"):
        check.image(IMAGE.to(dtype))


@pytest.mark.parametrize("values", [0, 1, 2])
def test_only_batch_norm_in_training_needs_two_values(values: int) -> None:
    for norm in (nn.BatchNorm2d(3).eval(), nn.SyncBatchNorm(3), nn.GroupNorm(1, 3), nn.Identity()):
        check.batch_norm(norm, values, IMAGE)
    if values < 2:
        with pytest.raises(ValueError, match=f"BatchNorm {values} value"):
            check.batch_norm(nn.BatchNorm1d(3), values, IMAGE)
    else:
        check.batch_norm(nn.BatchNorm1d(3), values, IMAGE)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\n b", "'a\\n b'"),
        (10**39, str(10**39)),
        (10**40, "2**132 and more"),
        (-(10**40), "-2**132 and more"),
        (torch.zeros(2, 3), "Tensor(shape=(2, 3), dtype=torch.float32)"),
        ([[[[1]]]], "[[[[...]]]]"),
        (list(range(17)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, ...]"),
        ("x" * 300, "'" + "x" * 119 + "... (str)"),
    ],
)
def test_values_are_shown_in_short(value: object, text: str) -> None:
    assert messages.shown(value) == text


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("reducton", "; did you mean 'reduction'?"),
        ("red", "; did you mean 'reduction'?"),
        ("kernelsize", "; did you mean 'kernel_size'?"),
        ("k", "; did you mean 'kernel_size'?"),
        ("zzzz", ""),
        ("", ""),
    ],
)
def test_the_nearest_keyword(word: str, hint: str) -> None:
    assert messages.nearest(word, ["reduction", "kernel_size", "bias"]) == hint


def test_the_nearest_word_comes_first() -> None:
    hint = messages.nearest("kernels", ["kernel", "kernels_of_all", "kernels"])
    assert hint == "; did you mean 'kernels' or 'kernel' or 'kernels_of_all'?"


def test_initials_of_a_title_are_nearest() -> None:
    titles = {"ours": "Deep Temporal Mamba", "theirs": "Something else"}
    assert messages.nearest("dtm", ["theirs", "ours"], titles) == "; did you mean 'ours'?"


class Wide(nn.Module):
    """Twice as many parameters as its width."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c))
        self.bias = nn.Parameter(torch.empty(c))


def test_too_many_parameters_are_refused() -> None:
    signature.enforce_signature("wide", Wide)
    with torch.device("meta"):
        assert Wide(c=2**30 + 1).bias.numel() == 2**30 + 1
    with pytest.raises(ValueError, match=r"^wide.*parameters"):
        Wide(c=2**30 + 1)


def test_rules_without_a_number_are_told_apart() -> None:
    """They are equal as tuples: one that must not be empty is no number of any size."""
    with pytest.raises(TypeError, match="must be a list or tuple"):
        types.fit("sizes", 0, types.Counts)
    with pytest.raises(ValueError, match="non-empty"):
        types.fit("sizes", [], types.Counts)
    assert types.fit("bytes", 2**40, types.Total) == 2**40
