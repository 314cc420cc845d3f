"""Annotations of arguments: what fits them, how they read, and how a constructor enforces them."""

import threading
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnzoo.validation import signature
from attnzoo.validation.tensors import first_sample, map_tensors, tensors
from attnzoo.validation.types import (
    Above,
    AtLeast,
    AtMost,
    Below,
    Counts,
    Depth,
    Odd,
    Odds,
    PerfectSquare,
    Positive,
    Rate,
    Total,
    Width,
    fit,
    limits,
    words,
)

Square = Annotated[int, AtLeast(1), PerfectSquare()]
Mode = Literal["mean", "max"]


@pytest.mark.parametrize(
    ("value", "hint", "found"),
    [
        (1, Width, 1),
        (1000, Depth, 1000),
        (np.int64(3), Width, 3),
        (2**31 - 1, int, 2**31 - 1),
        (2**40, Total, 2**40),
        (2, float, 2.0),
        (np.float32(0.5), Rate, 0.5),
        (0, Rate, 0.0),
        (0.5, Annotated[float, Above(0), Below(1)], 0.5),
        ([1, 2], tuple[int, int], (1, 2)),
        ([3, 5, 7], Odds, (3, 5, 7)),
        ("auto", int | Literal["auto"], "auto"),
        (None, Width | None, None),
        (4, Square, 4),
        ("anything", Any, "anything"),
    ],
)
def test_what_fits_is_converted(value: object, hint: Any, found: object) -> None:
    fitted = fit("x", value, hint)
    assert (fitted, type(fitted)) == (found, type(found))


@pytest.mark.parametrize(
    ("value", "hint", "kind", "text"),
    [
        (0, Width, ValueError, "x=0 must be at least 1"),
        (1001, Depth, ValueError, "x=1001 must be at least 1 and at most 1000"),
        (1.0, Rate, ValueError, "x=1.0 must be at least 0 and below 1"),
        (0, Positive, ValueError, "x=0.0 must be above 0"),
        (True, Width, TypeError, "x=True must be int, not bool"),
        (False, Rate, TypeError, "x=False must be float, not bool"),
        (2**31, int, ValueError, "x=2147483648 must be below 2**31"),
        (-(2**31), int, ValueError, "x=-2147483648 must be above -2**31"),
        (float("inf"), float, ValueError, "x=inf must be finite in float32, at most 3.4e+38"),
        (float("nan"), float, ValueError, "x=nan must be finite in float32, at most 3.4e+38"),
        (4, Odd, ValueError, "x=4 must be odd; the nearest are 3, 5"),
        (5, Square, ValueError, "x=5 must be a perfect square; the nearest are 4, 9"),
        ((), Counts, ValueError, "x=() must be non-empty"),
        ([1, 0], Counts, ValueError, "x[1]=0 must be at least 1"),
        ([1], tuple[int, int], ValueError, "x=[1] must have 2 items, not 1"),
        ([1, 2, 3], tuple[int, int], ValueError, "x=[1, 2, 3] must have 2 items, not 3"),
        ("all", int | Literal["auto"], ValueError, "x='all' must be int or 'auto', not str"),
        (True, Literal[1] | None, TypeError, "x=True must be 1 or None, not bool"),
        ("1", int | None, TypeError, "x='1' must be int or None, not str"),
        ("sum", Mode, ValueError, "x='sum' must be one of 'mean', 'max'"),
    ],
)
def test_what_does_not_fit_is_refused(
    value: object, hint: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as caught:
        fit("x", value, hint)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("hint", "in_words", "range_"),
    [
        (int, "int", ""),
        (Odd, "int", "at least 1, odd"),
        (Width | None, "int or None", "at least 1 or None"),
        (Width | Literal["auto"], "int or 'auto'", "at least 1 or one of 'auto'"),
        (int | None, "int or None", ""),
        (tuple[int, int], "a list or tuple (int, int)", ""),
        (tuple[int, ...], "a list or tuple (int, ...)", ""),
        (Odds, "a list or tuple (int, ...)", "non-empty; each at least 1, odd"),
        (Annotated[float, AtMost(2)], "float", "at most 2"),
    ],
)
def test_annotations_in_words(hint: Any, in_words: str, range_: str) -> None:
    assert (words(hint), limits(hint)) == (in_words, range_)


class Built(nn.Module):
    """Notes the device of every construction."""

    devices: list[str] = []  # noqa: RUF012

    def __init__(self, c: int = 1, *, sizes: tuple[int, ...] = (), fails: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c))
        Built.devices.append(self.weight.device.type)
        if fails:
            raise RuntimeError(fails)


class Heir(Built):
    """Takes its constructor from a class that is checked."""


class Open(nn.Module):
    def __init__(self, c: Width, **rest: int) -> None:
        super().__init__()


signature.enforce_signature("built", Built)
signature.enforce_signature("heir", Heir)


@pytest.mark.parametrize(
    ("config", "devices"),
    [
        ({"c": 2**22 - 1}, ["cpu"]),
        ({"c": 2**22}, ["meta", "cpu"]),
        ({"sizes": (2**11, 2**11)}, ["meta", "cpu"]),
    ],
)
def test_what_may_be_large_is_built_on_meta_first(config: Any, devices: list[str]) -> None:
    Built.devices.clear()
    Built(**config)
    assert Built.devices == devices


def test_a_class_is_wrapped_once_and_its_heir_under_its_own_name() -> None:
    init = Built.__init__
    signature.enforce_signature("built", Built)
    assert Built.__init__ is init
    with pytest.raises(TypeError, match=r"^heir has no argument 'd'"):
        Heir(d=1)  # type: ignore[call-arg]


def test_open_keywords_are_bound_by_their_names() -> None:
    assert signature.bind("open", Open, (2,), {"depth": 3}) == {"c": 2, "depth": 3}


@pytest.mark.parametrize(
    "text", ["overflow", "Overflow when unpacking", "can't allocate memory", "array is too large"]
)
def test_sizes_that_torch_refuses_are_too_many_parameters(text: str) -> None:
    with pytest.raises(ValueError, match=r"^built\(c=1, .*would have too many parameters"):
        Built(fails=text)
    with pytest.raises(RuntimeError, match=r"^the disk is full$"):
        Built(fails="the disk is full")


def test_parameters_of_other_threads_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "MAX_PARAMETERS", 100)
    made: list[nn.Module] = []
    with signature._limited_parameters("built", {}):
        thread = threading.Thread(target=lambda: made.append(nn.Linear(20, 20)))
        thread.start()
        thread.join()
    assert made
    with pytest.raises(ValueError, match="would have 400 or more parameters"):  # noqa: SIM117
        with signature._limited_parameters("built", {}):
            nn.Linear(20, 20)


class Pair(NamedTuple):
    left: Tensor
    right: Any


def test_nests_keep_their_structure() -> None:
    nest = {"a": [torch.ones(3, 2), 5], "b": Pair(torch.ones(3), (torch.ones(()), "text"))}
    first: Any = first_sample(nest)
    assert [t.shape for t in tensors(first)] == [(1, 2), (1,), ()]
    assert isinstance(first["b"], Pair)
    assert (first["a"][1], first["b"].right[1]) == (5, "text")
    assert isinstance(first["a"], list)
    assert map_tensors(lambda t: t.numel(), nest) == {"a": [6, 5], "b": Pair(3, (1, "text"))}
