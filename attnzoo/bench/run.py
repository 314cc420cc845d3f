"""One row of the benchmark: built, checked, counted and timed."""

import contextlib
import dataclasses
import gc
import os
from typing import Any

import torch

from ..cost import counter
from ..registry import Entry, build, find
from ..testing import work
from ..testing.inputs import leaves, make_inputs, randomize_parameters, tensors, to_channels_last
from ..validation.tensors import map_tensors
from .correct import Checker
from .job import Job, Settings
from .passes import Bound, Passes
from .row import Latency, Result, Row
from .timing import clock, cuda, roofline

Counts = dict[str, counter.WorkCounter]  # by the name of the pass
KINDS: dict[cuda.Kind, str] = {"wall": "", "device": "_device", "cold": "_cold"}


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

    Raises what the block raises, and WrongResultError if its results are wrong.
    """
    settings, entry = job.settings, find(job.block)
    with clock.cpu_threads(settings.threads), cuda.ieee():
        config = entry.bind(**job.config)
        bound = _built(job, entry, config)
        checker = Checker(entry, config, bound, settings)
        error = checker.check()
        counts = _counted(bound)
        costs = _costs(bound, counts, settings)
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
        roofs = roofline.bounds(works, settings)
    published = entry.closed_form(job.at, **config).macs
    return Row(
        block=job.block,
        **job.known(),
        macs=costs["macs_executed"] if published is None else published,
        **costs,
        **times,
        **roofs,
        compile_seconds=bound.compile_seconds,
        checked_error=error,
        checked_limit=checker.limit,
        load=load(),
    )


def _built(job: Job, entry: Entry, config: dict[str, Any]) -> Bound:
    """The block with random parameters, and random inputs."""
    settings = job.settings
    torch.manual_seed(0)
    block = build(job.block, **config, device=settings.device, dtype=settings.stored)
    randomize_parameters(block, by_fan_in=True)
    inputs = make_inputs(entry, config, job.at, device=settings.device, dtype=settings.stored)
    # Products of wider numbers saturate a softmax, and denormals are twenty times as slow.
    inputs = map_tensors(lambda t: t / 2 if t.is_floating_point() else t, inputs)
    if settings.channels_last:
        inputs = to_channels_last(entry, block, inputs)
    return Bound(entry, block, leaves(inputs), settings)


def latencies(passes: Passes, settings: Settings) -> dict[str, Any]:
    """A row's latencies, and why samples were discarded."""
    found: dict[str, Latency | None] = {}
    throttle = cuda.Throttle(settings.device) if settings.kind == "cuda" else None
    for name, one in passes._asdict().items():
        for kind, end in KINDS.items():
            timed = None
            with one.ready() as step:
                if throttle is None and kind == "wall":
                    timed = clock.latency(step, settings.min_time)
                elif throttle is not None and (settings.cold or kind != "cold"):
                    timed = cuda.latency(step, settings.device, settings.min_time, kind, throttle)
            found[f"latency_{name}{end}"] = timed
    return {**found, "throttle": throttle.reasons if throttle else None}


def load() -> float:
    """The system's load average per processor, or 0 if it is not available."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)


def _counted(bound: Bound) -> Counts:
    """What the very calls that are timed run, before compilation."""
    found = {name: counter.WorkCounter() for name in Passes._fields}
    for one, counting in zip(bound.eager, found.values(), strict=True):
        with one.ready() as step, counter.mha_in_parts(), counting:
            step()
    return found


def _costs(bound: Bound, counts: Counts, settings: Settings) -> dict[str, Any]:
    """The row's counts and its memory."""
    block, batch = bound.block, next(tensors(bound.inputs)).shape[0]
    with bound.eager.forward.ready() as step:
        traffic = counter.traffic(block.parameters(), bound.inputs, step())
    outside = (*block.parameters(), *block.buffers(), *tensors(bound.inputs))
    with dataclasses.replace(bound.recorded.forward, train=True).ready() as step:
        saved = counter.saved_bytes(step, outside)
    quoted = peak = None
    if settings.kind == "cuda":
        with bound.recorded.training.ready() as step:
            peak = cuda.peak_bytes(step, settings.device)
    with contextlib.suppress(Exception):  # fvcore is not installed, or its trace fails
        quoted = work.fvcore_count(block, bound.inputs)
    forward, training = (count.work for count in counts.values())
    return {
        "params": sum(p.numel() for p in block.parameters()),
        "macs_executed": round(forward.macs / batch),
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
