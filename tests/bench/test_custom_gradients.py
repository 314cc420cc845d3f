"""The study of hand-written gradients: each has a reference form, and its row says what it was."""

from importlib import import_module
from pkgutil import iter_modules

import pytest
import torch
from torch import Tensor

from attnzoo import InputSize, autograd
from attnzoo.autograd import Pair

import custom_gradients as study


def test_every_pair_is_joined_to_its_reference_form() -> None:
    modules = [import_module(f"attnzoo.autograd.{m.name}") for m in iter_modules(autograd.__path__)]
    pairs = {
        id(v): f"{m.__name__}.{k}"
        for m in modules
        for k, v in vars(m).items()
        if isinstance(v, Pair)
    }
    assert len(pairs) >= 10
    assert set(pairs) <= {id(function.pair) for function in study.joined().values()}, pairs


def test_a_row_counts_what_is_kept_and_takes_both_sides() -> None:
    work = study.Workload("coordatt", {"c": 64}, InputSize(2, 1, 32, 33))
    whole, pair = study.measured(work, samples=2)
    assert whole["pair"] is None
    assert pair["pair"] == "coordatt.scale"
    assert (pair["saved_bytes"], pair["reference_saved_bytes"]) == (0, 2 * 64 * 32 * 33 * 4)
    assert pair["saved"] == 0
    assert pair["pays"]
    assert 0 < whole["saved_bytes"] < whole["reference_saved_bytes"]
    assert min(pair["ms"], pair["reference_ms"]) > 0
    text = study.markdown([whole, pair])
    assert "| coordatt | coordatt.scale | 2x64x32x33 |" in text


def test_saved_bytes_count_a_storage_once_and_no_argument() -> None:
    x = torch.randn(4, 6, requires_grad=True)

    def step() -> list[Tensor]:
        y = x.exp()  # kept once, for itself and for both products
        return [y * y.t()[:4, :4].sum(), y[:2] * y[:2]]

    assert study.saved_bytes(step, [x]) == 4 * 6 * 4 + 4


def test_a_pair_that_no_workload_calls_fails_the_study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "WORKLOADS", ())
    assert study.main(["--samples", "1"]) == 1
    assert "cbam.pool: no workload calls it" in capsys.readouterr().err
