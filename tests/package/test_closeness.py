"""Relative errors of whole tensors, and the assertion that uses them."""

import math

import pytest
import torch
from torch import Tensor

from attnzoo.reference.closeness import differences, relative_errors, root_mean_square
from attnzoo.testing.closeness import assert_close

WANTED = {"large": torch.tensor([3.0, -4.0]), "zero": torch.zeros(2)}


def error(found: Tensor | None, wanted: Tensor | None) -> float:
    return relative_errors({"x": found}, {"x": wanted})["x"]


def test_a_difference_is_relative_to_the_largest_wanted_value() -> None:
    assert error(torch.tensor([3.0, -4.4]), WANTED["large"]) == pytest.approx(0.1)
    assert error(torch.tensor([3.0, -4.0]), torch.tensor([3.0, -4.4])) == pytest.approx(0.4 / 4.4)


def test_the_root_mean_square_averages() -> None:
    found = {"x": torch.tensor([3.0, -4.5])}
    wanted = {"x": WANTED["large"]}
    errors = relative_errors(found, wanted, size=root_mean_square)
    assert errors["x"] == pytest.approx(0.5 / 5)


def test_tiny_tensors_are_relative_to_the_largest_of_their_group() -> None:
    found = {"large": WANTED["large"], "zero": torch.full((2,), 1e-6)}
    assert relative_errors(found, WANTED)["zero"] == pytest.approx(1e-6 / 4e-3)
    assert relative_errors({"zero": found["zero"]}, {"zero": WANTED["zero"]})["zero"] > 1e20


def test_noise_replaces_a_smaller_scale() -> None:
    found, wanted = {"x": torch.tensor([1.5])}, {"x": torch.tensor([1.0])}
    assert relative_errors(found, wanted, noise={"x": 5.0})["x"] == pytest.approx(0.1)
    assert relative_errors(found, wanted, noise={"x": 0.1})["x"] == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_tensors_have_an_infinite_error(bad: float) -> None:
    good, spoiled = torch.tensor([1.0, 2.0]), torch.tensor([1.0, bad])
    assert error(spoiled, good) == error(good, spoiled) == error(spoiled, spoiled) == math.inf
    other = relative_errors({"a": good, "b": good + 1}, {"a": spoiled, "b": good})
    assert other == {"a": math.inf, "b": 0.5}, "and it hides no other error of its group"


def test_absent_and_misshaped_tensors_have_an_infinite_error() -> None:
    x = torch.ones(2, 3)
    assert error(None, x) == error(x, None) == error(x.mT, x) == error(x[:1], x) == math.inf
    assert differences({"x": None}, {"x": None}) == {}
    assert differences({}, {"x": x}) == differences({"x": x}, {}) == {"x": math.inf}


def test_differences_are_taken_in_float64() -> None:
    """Half precision has no number for this one, and integers of bytes none below zero."""
    assert error(torch.tensor([60_000.0]).half(), torch.tensor([-60_000.0]).half()) == 2


def test_empty_tensors_agree_and_integers_must_be_equal() -> None:
    assert error(torch.empty(0, 3), torch.empty(0, 3)) == 0
    assert error(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0
    assert error(torch.tensor([1, 2]), torch.tensor([1, 3])) == math.inf


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_half_of_the_digits_must_agree(dtype: torch.dtype) -> None:
    limit = math.sqrt(torch.finfo(dtype).eps)
    wanted = torch.ones(4, dtype=torch.float64)
    assert_close([wanted + 0.9 * limit], [wanted], dtype)
    with pytest.raises(AssertionError, match="tensor 0 is off by"):
        assert_close([wanted + 1.1 * limit], [wanted], dtype)
    with pytest.raises(AssertionError):
        assert_close({"y": [wanted]}, {"y": [wanted, wanted]})


def test_the_least_precise_side_decides() -> None:
    wanted = torch.ones(4, dtype=torch.float64)
    assert_close((wanted + 1e-2).to(torch.float16), wanted)
    with pytest.raises(AssertionError, match=r"over 1\.490e-08"):
        assert_close(wanted + 1e-7, wanted)
