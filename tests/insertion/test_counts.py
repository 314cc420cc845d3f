"""`attnzoo.insert` and `attnzoo.measure` report the same parameters and multiply-adds."""

import math
import re

import pytest
import torch
from torch import nn

import attnzoo
from attnzoo.insertion.report import Insertion, Placement
from attnzoo.registry import Entry, find
from attnzoo.testing.inputs import make_inputs
from attnzoo.testing.work import work

from contract import blocks

SIZE = attnzoo.InputSize(batch=3, steps=13, height=9, width=11)
NO_PLACE = "takes one tensor|the network goes on with|(positions|attn) is missing"
GIVEN_BY_THE_PLACE = {"c", "layout", "length"}


def inserted(entry: Entry, x: torch.Tensor) -> Insertion:
    config = {k: v for k, v in entry.example.items() if k not in GIVEN_BY_THE_PLACE}
    net = nn.Sequential(nn.Identity())
    return attnzoo.insert(net, "0", entry.name, example_input=x, dry_run=True, **config)


def place_of(name: str) -> Placement | None:
    """What `insert` reports of a block's example; None where it is no block to insert."""
    entry = find(name)
    inputs = make_inputs(entry, dict(entry.example), SIZE)
    x = next(iter(inputs.values()))
    if not isinstance(x, torch.Tensor):
        x = torch.zeros(2, 4, 8, 8)  # a list of features
    try:
        report = inserted(entry, x)
    except ValueError as error:
        assert re.search(NO_PLACE, str(error)), "refused for another reason"
        return None
    (place,) = report.placements
    return place


@blocks
def test_insert_counts_as_the_catalogue_states(name: str) -> None:
    place, entry = place_of(name), find(name)
    if place is None:
        return
    form = entry.closed_form(SIZE, **place.config)
    macs = entry.executed(SIZE, **place.config) if form.macs is None else form.macs
    assert (place.parameters, place.macs) == (form.params, macs)


@pytest.mark.slow
@blocks
def test_measure_counts_the_same(name: str) -> None:
    place = place_of(name)
    if place is None:
        return
    row = attnzoo.measure(
        name,
        **place.config,
        batch=SIZE.batch,
        steps=SIZE.steps,
        size=(SIZE.height, SIZE.width),
        min_time=0.001,
    )
    assert (place.parameters, place.macs) == (row.params, row.macs)


@pytest.mark.parametrize("nodes", [(), (5,), (2, 5)])
def test_sequences_of_a_sample_count_one_by_one(nodes: tuple[int, ...]) -> None:
    entry = find("dilated_inception")  # states less than what runs
    x = torch.zeros(3, *nodes, 13, 32)
    (place,) = inserted(entry, x).placements
    form = entry.closed_form(SIZE, **place.config)
    assert place.macs == form.macs * math.prod(nodes)
    assert form.macs != entry.executed(SIZE, **place.config)


class Projected(nn.Module):
    """A block without a formula: counted, on one sample."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.project = nn.Linear(c, c)
        self.fold = nn.Parameter(torch.ones(c, c))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.fold @ self.project.weight  # once a call, whatever the batch
        y: torch.Tensor = x @ weight
        return y


def test_a_block_without_a_formula_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attnzoo.registry, "_blocks", dict(attnzoo.registry._catalogue()))
    attnzoo.register("projected", Projected, layout="sequence", example={"c": 8})
    entry, x = find("projected"), torch.zeros(3, 13, 8)
    (place,) = inserted(entry, x).placements
    assert place.macs == work(Projected(8), {"x": x}).macs == 8**3 + 13 * 8 * 8
    assert entry.closed_form(c=8) == (8 * 8 + 8 + 8 * 8, None, None)
    assert attnzoo.describe("projected").macs is None
