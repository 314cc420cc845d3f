"""Counts: closed forms, the dispatcher, torch's counter and fvcore's agree to the last MAC."""

import copy
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import published
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import attnzoo
from attnzoo import Extent
from attnzoo.bench import count, operators
from attnzoo.bench.traced import macs_traced
from attnzoo.bench.workload import make_inputs
from attnzoo.reference import Case, cases
from attnzoo.registry import Entry, Inputs, find

from contract import ODD, blocks

Config = dict[str, Any]
TRANSCRIBED = set(attnzoo.names()) & set(dir(published))


def configs(entry: Entry) -> Iterator[tuple[Config, Extent]]:
    """The example at two sizes, changed one option at a time; the reference cases at theirs."""
    example = dict(entry.example)
    bound = entry.bind(**example)
    changed = [
        {key: value}
        for key, parameter in entry.signature.parameters.items()
        for value in others(bound[key], parameter.annotation)
    ]
    yield example, entry.extent
    for config in ({}, *changed):
        yield {**example, **config}, ODD
    for case in map(Case.load, cases(entry.name)):
        yield case.config, extent_of(entry, case)


def others(value: Any, annotation: Any) -> list[Any]:
    """Other values that an option may have."""
    if isinstance(value, tuple):
        return [value[:-1], value[::-1]]
    choices = [
        choice
        for kind in (annotation, *get_args(annotation))
        if get_origin(kind) is Literal
        for choice in get_args(kind)
    ]
    if choices:
        return [choice for choice in choices if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [2 * value, value + 1]
    return []


def extent_of(entry: Entry, case: Case) -> Extent:
    """The size of a reference case's first input."""
    shape = next(iter(case.part("input").values())).shape
    layout = case.config.get("layout", entry.layouts[0])
    if layout == "sequence":
        return entry.extent._replace(steps=shape[-2])
    if layout in ("image", "image_series"):
        return entry.extent._replace(steps=shape[1], height=shape[-2], width=shape[-1])
    return entry.extent


def built(entry: Entry, config: Config, extent: Extent) -> tuple[nn.Module, Inputs] | None:
    """Block and inputs without numbers, or None where the config is refused."""
    try:
        block = attnzoo.build(entry.name, **config, device="meta")
    except ValueError:
        return None
    return block, make_inputs(entry, config, extent, device="meta")


def counted(block: nn.Module, inputs: Inputs) -> operators.Work | None:
    """Our count, held to torch's of the same pass; None where the size is refused."""
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            work = count.work(block, inputs)
    except ValueError:
        return None
    assert counter.get_total_flops() == 2 * work.macs
    return work


@blocks
def test_closed_forms_equal_the_counts_of_every_option(name: str) -> None:
    entry, seen = find(name), 0
    for config, extent in configs(entry):
        made = built(entry, config, extent)
        work = counted(*made) if made else None
        if made is None or work is None:
            assert config != entry.example
            continue
        form = entry.closed_form(extent, **config)
        assert form is not None, "a block of the package states its cost"
        assert form.params == sum(p.numel() for p in made[0].parameters()), config
        assert form.executed == work.macs, (config, extent)
        if form.macs_executed is not None:
            assert name in TRANSCRIBED, "what the authors compute and nothing here runs"
        if name in TRANSCRIBED:
            bound = entry.bind(**config)
            assert getattr(published, name)(extent, **bound) == (form.params, form.macs), config
        seen += 1
    assert seen >= 4


@blocks
def test_fvcore_with_our_handles_counts_the_same(name: str) -> None:
    entry = find(name)
    wanted = [(dict(entry.example), ODD)]
    wanted += [(c.config, extent_of(entry, c)) for c in map(Case.load, cases(name))]
    for config, extent in wanted:
        block = attnzoo.build(name, **config)
        inputs = make_inputs(entry, config, extent)
        assert macs_traced(block, inputs).total() == count.macs_executed(block, inputs), config
        assert block.training


class Function(nn.Module):
    """A module of one function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def work_of(function: Any, *shapes: tuple[int, ...]) -> operators.Work:
    inputs = {f"x{i}": torch.empty(shape, device="meta") for i, shape in enumerate(shapes)}
    return count.work(Function(function), inputs)


def test_saved_bytes_are_what_autograd_keeps() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    kept = count.saved_bytes(Function(lambda x: (x.exp() * 2).sin()), {"x": x})
    assert kept == 2 * 2 * 3 * 4  # exp's output and sin's input


def test_only_what_can_have_a_gradient_moves_one() -> None:
    block = nn.Linear(3, 4)
    block.bias.requires_grad_(False)
    x, days, mask = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3) > 0
    y = torch.zeros(2, 4)
    found = count.traffic(block, {"x": x, "days": days, "mask": mask}, (y, days))
    floating = 4 * (12 + 6 + 8)  # weight, x, y
    assert found == (floating + 4 * 4 + 2 * 8 * 6 + 6, 2 * floating + 4 * 4 + 2 * 8 * 6 + 6)


def test_counting_leaves_the_block_as_it_was() -> None:
    block = attnzoo.build("cbam", 32)
    before, fast = copy.deepcopy(block.state_dict()), torch.backends.mha.get_fastpath_enabled()
    count.macs(block, {"x": torch.randn(2, 32, 4, 4)})
    assert block.training
    assert torch.backends.mha.get_fastpath_enabled() == fast
    after = block.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
