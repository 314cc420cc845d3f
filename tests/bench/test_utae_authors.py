"""The comparison of `utae` with the authors' code, and what it wrote."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

import attnzoo

import utae_authors as study

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu" / "utae_authors.json"


class Theirs(nn.Module):
    """Stands for the authors' network: ours, called as theirs is, and twice."""

    def __init__(self, wrong: float = 0.0) -> None:
        super().__init__()
        self.inner, self.wrong = attnzoo.build("utae", c=3, dropout=0.0), wrong

    def forward(self, x: Tensor, batch_positions: Tensor) -> Tensor:
        self.inner(torch.zeros_like(x), positions=batch_positions)
        return self.inner(x, positions=batch_positions) + self.wrong


def test_outputs_are_compared_and_both_are_measured() -> None:
    theirs, series = Theirs(), study.Series.drawn((2, 3, 3, 16, 16), 1)
    assert not series.x[1, -1].any()
    nets = {"attnzoo": theirs.inner, "authors": theirs}
    assert study.agreement(nets, series) == 0
    assert study.agreement({**nets, "authors": Theirs(1.0)}, series) > 0.1
    ours, others = study.times(nets, series, False, 2)
    assert min(others) > 1.2 * min(ours)
    small, large = (study.saved(net, series) for net in nets.values())
    assert large > 1.2 * small


def test_the_page_gives_the_ratio_of_the_least_and_of_the_pairs() -> None:
    row = {"shape": (2, 24), "outputs": [1e-6, 2e-6], "commit": "abc"}
    row |= {f"{kind}_s": [[1.0, 2.0], [3.0, 4.0]] for kind in ("prediction", "training")}
    row |= {"saved_bytes": [2**20, 2**21], "prediction_mib": [1, 2], "training_mib": [4, 2]}
    text = study.page(row, "python x")
    assert "| prediction | 1.00 s (2.00) | 3.00 s (4.00) | 3.00 (2.00 to 3.00) |" in text
    assert "| peak of forward and backward | 4 MiB | 2 MiB | 0.50 |" in text


def test_ours_is_faster_in_the_recorded_run_and_needs_no_more_memory() -> None:
    row = json.loads(RESULTS.read_text())
    assert row["shape"] == list(study.SHAPE)
    for kind, least in (("prediction", 1.5), ("training", 1.25)):  # theirs runs forward twice
        ours, theirs = row[f"{kind}_s"]
        assert min(theirs) > least * min(ours), kind
    for key in ("saved_bytes", "prediction_mib", "training_mib"):
        ours, theirs = row[key]
        assert ours <= theirs, key
