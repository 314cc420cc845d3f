"""One row of the benchmark, checked and measured; and many rows, one after the other."""

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..cost import counter
from ..registry import Entry, Inputs, InputSize, build, find
from ..testing.inputs import leaves, make_inputs, randomize_parameters, tensors, to_channels_last
from ..testing.work import saved_bytes
from ..testing.work import work as counted
from . import correct, cuda, passes, roofline, timing
from .correct import WrongResultError as WrongResultError
from .passes import Bound
from .row import Failure as Failure
from .row import Row as Row
from .settings import Settings as Settings
from .task import Task as Task
from .task import tasks as tasks


def table(
    names: Iterable[str], settings: Settings | Iterable[Settings], c: int | None = None
) -> Iterator[Row | Failure]:
    """One row a block and settings at its example config, with the channels given here instead."""
    for task in tasks(names, settings, ({} if c is None else {"c": c},)):
        yield perform(task)


def measured(
    name: str, args: tuple[Any, ...], config: Mapping[str, Any], settings: Settings
) -> Row:
    """One block with a config, checked and measured; what `attnzoo.measure` returns."""
    entry = find(name)
    given = config if config or args else entry.example
    return _row(Task(block=name, config=entry.bind(*args, **given), settings=settings))


def perform(task: Task) -> Row | Failure:
    """The task's row; whatever the block raises becomes a `Failure`, and its memory is freed."""
    try:
        return _row(task)
    except Exception as error:  # a user's block may raise anything; Ctrl-C still ends the run
        reason = " ".join(str(error).strip().split("\n")[:2])
        failure = task.failed(f"{type(error).__name__}: {reason}".removesuffix(": "))
    gc.collect()
    if task.settings.kind == "cuda":
        torch.cuda.empty_cache()
    return failure


def _row(task: Task) -> Row:
    settings, entry = task.settings, find(task.block)
    config, extent = entry.bind(**task.config), settings.input_size(entry)
    with _threads(settings.threads), cuda.ieee():
        block, inputs = _made(entry, config, extent, settings)
        bound = passes.bind(entry, block, inputs, settings)
        checked = correct.check(entry, config, bound, settings)
        costs = _costs(entry, config, extent, bound)
        times = timing.times(bound.passes, settings)
        roof = roofline.verdict(_works(costs, times, bound, settings), settings)
        memory = _memory(bound, settings)
    return Row(
        block=task.block,
        **task.known(),
        **costs,
        **times,
        **roof,
        **memory,
        compile_seconds=bound.compile_seconds,
        checked_error=checked.error,
        checked_limit=checked.limit,
    )


def _made(
    entry: Entry, config: dict[str, Any], extent: InputSize, settings: Settings
) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    at: dict[str, Any] = {"device": settings.device, "dtype": settings.stored}
    block = build(entry.name, **config, **at)
    randomize_parameters(block)
    inputs = make_inputs(entry, config, extent, **at)
    if settings.channels_last:
        inputs = to_channels_last(entry, block, inputs)
    return block, leaves(inputs)


def _costs(entry: Entry, config: dict[str, Any], extent: InputSize, bound: Bound) -> dict[str, Any]:
    """The row's counts, of a copy of the block on the meta device."""
    ghost = build(entry.name, **config, device="meta")
    work = counted(ghost, make_inputs(entry, config, extent, device="meta"))
    published = entry.closed_form(extent, **config)
    with bound.passes.forward.ready() as step:
        traffic = counter.traffic(bound.block.parameters(), bound.inputs, step())
    return {
        "params": sum(p.numel() for p in bound.block.parameters()),
        "macs": work.macs if published.macs is None else published.macs,
        "macs_executed": work.macs,
        "elementwise": work.elementwise,
        "bytes_forward": traffic.forward,
        "bytes_training": traffic.training,
    }


def _works(
    costs: dict[str, Any], times: dict[str, Any], bound: Bound, settings: Settings
) -> dict[str, roofline.Work]:
    macs = costs["macs_executed"] * next(tensors(bound.inputs)).shape[0]
    products = {"forward": macs, "training": macs * (1 + roofline.BACKWARD)}
    return {
        name: roofline.Work(
            bytes=costs[f"bytes_{name}"],
            macs=products[name],
            calls=roofline.calls(getattr(bound.passes, name), settings),
            seconds=times[f"latency_{name}"].median / 1e3,
        )
        for name in products
    }


def _memory(bound: Bound, settings: Settings) -> dict[str, Any]:
    with settings.precision():
        saved = saved_bytes(bound.run.train(), bound.inputs)
    with bound.allocating.ready() as step:
        peak = cuda.peak_bytes(step, settings.device) if settings.kind == "cuda" else None
    return {"memory_saved_bytes": saved, "memory_peak_bytes": peak}


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
