"""One row of the benchmark: built, checked, counted and measured."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..cost import counter
from ..registry import build, find
from ..testing import work
from ..testing.inputs import leaves, make_inputs, randomize_parameters, tensors, to_channels_last
from ..validation.tensors import map_tensors
from . import correct, passes
from .job import Job
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
        # Products of wider numbers saturate a softmax: denormals are twenty times as slow.
        inputs = map_tensors(lambda t: t / 2 if t.is_floating_point() else t, inputs)
        if settings.channels_last:
            inputs = to_channels_last(entry, block, inputs)
        bound = passes.bind(entry, block, leaves(inputs), settings)
        checker = correct.Checker(entry, config, bound, settings)
        error = checker.check()
        counts = _counted(bound)
        costs = _costs(job, config, bound, counts)
        times = latencies(bound.passes, settings)
        checker.check_again()
        works = {
            name: roofline.Work(
                bytes=costs[f"bytes_{name}"],
                macs=count.work.macs,
                calls=count.calls if settings.mode == "eager" else 1,
                seconds=times[f"latency_{name}"].best / 1e3,
            )
            for name, count in counts.items()
        }
        return Row(
            block=job.block,
            **job.known(),
            **costs,
            **times,
            **roofline.verdict(works, settings),
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
        for end, kind in kinds.items():
            with one.ready() as step:
                found[f"latency_{name}{end}"] = _latency(step, kind, settings, clocks)
    return {
        **found,
        "sm_clock_mhz": clocks.mhz if clocks else None,
        "throttle": clocks.throttle if clocks else None,
    }


def _latency(
    step: Callable[[], Any], kind: cuda.Kind, settings: Settings, clocks: cuda.Clocks | None
) -> Latency | None:
    """One latency of a pass; None where the device has no such kind, or it was not asked for."""
    if clocks is None:
        return clock.latency(step, settings.min_time) if kind == "wall" else None
    if kind == "cold" and not settings.cold:
        return None
    return cuda.latency(step, settings.device, settings.min_time, kind, clocks)


def load() -> float:
    """The system's load average per processor, or 0 if it is not available."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)


def _counted(bound: passes.Bound) -> dict[str, counter.WorkCounter]:
    """What the very calls that are timed run, before a compiler takes them over."""
    found = {}
    for name in ("forward", "training"):
        found[name] = counter.WorkCounter()
        with getattr(bound.eager, name).ready() as step, counter.mha_in_parts(), found[name]:
            step()
    return found


def _costs(
    job: Job, config: dict[str, Any], bound: passes.Bound, counts: dict[str, counter.WorkCounter]
) -> dict[str, Any]:
    """The row's counts and its memory."""
    block, batch = bound.block, next(tensors(bound.inputs)).shape[0]
    with bound.eager.forward.ready() as step:
        traffic = counter.traffic(block.parameters(), bound.inputs, step())
    outside = (*block.parameters(), *block.buffers(), *tensors(bound.inputs))
    with bound.uncaptured.train_forward.ready() as step:
        saved = counter.saved_bytes(step, outside)
    peak = None
    if job.settings.kind == "cuda":
        with bound.uncaptured.training.ready() as step:
            peak = cuda.peak_bytes(step, job.settings.device)
    try:
        quoted = work.fvcore_count(block, bound.inputs)
    except Exception:  # without fvcore, or where its trace fails, the block's own count stands
        quoted = None
    published = find(job.block).closed_form(job.at, **config)
    forward, training = (counts[name].work for name in ("forward", "training"))
    executed = round(forward.macs / batch)
    return {
        "params": sum(p.numel() for p in block.parameters()),
        "macs": executed if published.macs is None else published.macs,
        "macs_executed": executed,
        "macs_executed_training": round(training.macs / batch),
        "elementwise": round(forward.elementwise / batch),
        "elementwise_training": round(training.elementwise / batch),
        "fvcore_macs": quoted.macs if quoted else None,
        "fvcore_misses": quoted.missed if quoted else {},
        "bytes_forward": traffic.forward,
        "bytes_training": traffic.training,
        "memory_saved_bytes": saved,
        "memory_peak_bytes": peak,
    }


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
