"""Samples of a step on the CPU; standard library only, for processes of other versions."""

import contextlib
import gc
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

SAMPLE_SECONDS = 5e-4
LONG = 0.02  # seconds; a call that takes longer is estimated from a single one

Step = Callable[[], Any]


class Sample(NamedTuple):
    """A few calls in a row, in seconds of one call."""

    wall: float
    processor: float  # CPU time of this thread
    preempted: bool  # the system ran another process meanwhile
    waited: bool  # the thread slept, or waited for other threads


def times(samples: Sequence[Sample]) -> list[float]:
    """Seconds of one call, in CPU time of the thread.

    If most samples waited, for other threads for example, waiting is part of the step: then wall
    time is used, of the samples that were not preempted if there are any.
    """
    if 2 * sum(sample.waited for sample in samples) <= len(samples):
        return [sample.processor for sample in samples]
    return [s.wall for s in samples if not s.preempted] or [s.wall for s in samples]


def calls_per_sample(step: Step) -> int:
    """How many calls fill a sample, by the shortest of three."""
    once = times(burst(step, 1, 0.0))[0]
    if once < LONG:
        once = min(times(burst(step, 1, 0.0, 3)))
    return max(1, math.floor(SAMPLE_SECONDS / max(once, 1e-7)))


def burst(step: Step, calls: int, seconds: float, least: int = 1) -> list[Sample]:
    """At least so many samples, and so many seconds of them, without garbage collection."""
    found: list[Sample] = []
    spent = 0.0
    with uncollected():
        while len(found) < least or spent < seconds:
            found.append(_sample(step, calls))
            spent += calls * times(found[-1:])[0]
    return found


def _sample(step: Step, calls: int) -> Sample:
    switches = _switches()
    wall, processor = time.perf_counter(), time.thread_time()
    for _ in range(calls):
        step()
    processor, wall = time.thread_time() - processor, time.perf_counter() - wall
    own, taken = (b - a for a, b in zip(switches, _switches(), strict=True))
    lost = not own and wall > 1.05 * processor + 2e-5
    return Sample(wall / calls, processor / calls, taken > 0 or lost, own > 0)


def _switches() -> tuple[int, int]:
    """Voluntary and involuntary context switches of this thread; zero if they are not reported."""
    if sys.platform != "linux":
        return 0, 0
    import resource

    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_nvcsw, usage.ru_nivcsw


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Disable Python's garbage collector."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
