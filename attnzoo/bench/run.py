"""One row of the benchmark: built, checked, counted and measured."""

import contextlib
import gc
import os
from collections.abc import Iterator
from typing import Any

import torch

from ..cost import counter
from ..registry import build, find
from ..testing import work
from ..testing.inputs import leaves, make_inputs, randomize_parameters, tensors, to_channels_last
from . import correct, passes
from .job import Job
from .passes import Bound
from .row import Latency, Result, Row
from .settings import Settings
from .timing import clock, cuda, roofline


def perform(job: Job) -> Result:
    """The job's row; whatever the block raises becomes a `Failure`, and its memory is freed."""
    try:
        return row(job)
    except Exception as error:  # a user's block may raise anything; Ctrl-C still ends the run
        reason = " ".join(str(error).strip().split("\n")[:2])
        failure = job.failed(f"{type(error).__name__}: {reason}".removesuffix(": "))
    gc.collect()
    if job.settings.kind == "cuda":
        with contextlib.suppress(RuntimeError):  # a device that failed for good
            torch.cuda.empty_cache()
    return failure


def row(job: Job) -> Row:
    """The job's row.

    Raises what the block raises, and WrongResultError where its results are wrong.
    """
    settings = job.settings
    with _threads(settings.threads), cuda.ieee():
        entry = find(job.block)
        config = entry.bind(**job.config)
        torch.manual_seed(0)
        block = build(job.block, **config, device=settings.device, dtype=settings.stored)
        randomize_parameters(block, by_fan_in=True)
        inputs = make_inputs(entry, config, job.at, device=settings.device, dtype=settings.stored)
        if settings.channels_last:
            inputs = to_channels_last(entry, block, inputs)
        bound = passes.bind(entry, block, leaves(inputs), settings)
        checker = correct.Checker(entry, config, bound, settings)
        error = checker.check()
        costs = _costs(job, config, bound)
        times = latencies(bound.passes, settings)
        checker.check_again()
        return Row(
            block=job.block,
            **job.known(),
            **costs,
            **times,
            **roofline.verdict(_works(costs, times, bound, settings), settings),
            compile_seconds=bound.compile_seconds,
            checked_error=error,
            checked_limit=checker.limit,
            load=load(),
        )


def latencies(bound: passes.Passes, settings: Settings) -> dict[str, Any]:
    """A row's latencies, and what the device's clock did meanwhile."""
    clocks = cuda.Clocks(settings.device) if settings.kind == "cuda" else None
    found: dict[str, Latency | None] = {}
    for name, one in bound._asdict().items():
        kinds: dict[str, cuda.Kind] = {"": "wall"}
        if name != "train_forward":
            kinds |= {"_device": "device", "_cold": "cold"}
        with one.ready() as step:
            for end, kind in kinds.items():
                taken: Latency | None = None
                if clocks is not None and (kind != "cold" or settings.cold):
                    device, seconds = settings.device, settings.min_time
                    taken = cuda.latency(step, device, seconds, kind, clocks)
                elif clocks is None and kind == "wall":
                    taken = clock.latency(step, settings.min_time)
                found[f"latency_{name}{end}"] = taken
    return {
        **found,
        "sm_clock_mhz": clocks.mhz if clocks else None,
        "throttle": clocks.throttle if clocks else None,
    }


def load() -> float:
    """The system's load average per processor, or 0 if it is not available."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)


def _costs(job: Job, config: dict[str, Any], bound: Bound) -> dict[str, Any]:
    """The row's counts, of the very calls that are timed."""
    block, batch, works = bound.block, _batch(bound), {}
    for name in ("forward", "training"):
        with getattr(bound.eager, name).ready() as step:
            works[name] = counter.count(step)
    with bound.passes.forward.ready() as step:
        traffic = counter.traffic(block.parameters(), bound.inputs, step())
    outside = (*block.parameters(), *block.buffers(), *tensors(bound.inputs))
    with bound.uncaptured.train_forward.ready() as step:
        saved = counter.saved_bytes(step, outside)
    peak = None
    if job.settings.kind == "cuda":
        with bound.uncaptured.training.ready() as step:
            peak = cuda.peak_bytes(step, job.settings.device)
    executed = round(works["forward"].macs / batch)
    published = find(job.block).closed_form(job.at, **config)
    return {
        "params": sum(p.numel() for p in block.parameters()),
        "macs": executed if published.macs is None else published.macs,
        "macs_executed": executed,
        "macs_executed_training": round(works["training"].macs / batch),
        "elementwise": round(works["forward"].elementwise / batch),
        "elementwise_training": round(works["training"].elementwise / batch),
        "bytes_forward": traffic.forward,
        "bytes_training": traffic.training,
        "memory_saved_bytes": saved,
        "memory_peak_bytes": peak,
        **_fvcore(bound),
    }


def _fvcore(bound: Bound) -> dict[str, Any]:
    """What fvcore counts and misses; None where it is not installed or cannot trace the block."""
    try:
        found = work.fvcore_count(bound.block, bound.inputs)
    except Exception:  # a trace may fail at anything; the block's own count stands
        return {"fvcore_macs": None, "fvcore_misses": {}}
    return {"fvcore_macs": found.macs, "fvcore_misses": found.missed}


def _works(
    costs: dict[str, Any], times: dict[str, Any], bound: Bound, settings: Settings
) -> dict[str, roofline.Work]:
    return {
        name: roofline.Work(
            bytes=costs[f"bytes_{name}"],
            macs=costs[executed] * _batch(bound),
            calls=roofline.calls(getattr(bound.passes, name), settings),
            seconds=times[f"latency_{name}"].best / 1e3,
        )
        for name, executed in (
            ("forward", "macs_executed"),
            ("training", "macs_executed_training"),
        )
    }


def _batch(bound: Bound) -> int:
    return next(tensors(bound.inputs)).shape[0]


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
