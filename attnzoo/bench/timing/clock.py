"""The latency of a step on the CPU: the minimum of many short samples.

On a busy machine a thread is preempted for milliseconds at a time, and slowed for a second or more
by other processes on the same core. So a sample lasts half a millisecond (or one call, if that is
longer) and is measured in CPU time of the thread. Samples are taken in rounds, until two rounds
reach the same minimum while a reference load runs at its best speed.
"""

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from ..row import Latency
from .sample import Step, burst, calls_per_sample, times

ROUNDS = 6  # that share the requested seconds
LEAST_ROUNDS = 2
MAX_OVERTIME = 6  # times the requested seconds, in wall time
SETTLED = 1.03  # the largest ratio of two minima that are the same
CALM = 1.1  # times the reference load's best time


class Round(NamedTuple):
    """Samples taken in a row."""

    seconds: list[float]  # of one call, for each sample
    spent: float  # seconds of all calls
    disturbed: int  # samples that were preempted or discarded
    calm: bool  # the machine ran at its best speed


def latency(step: Step, seconds: float) -> Latency:
    """The latency of a step on the CPU."""
    calls, load = calls_per_sample(step), _reference_load()

    def take() -> Round:
        before = load.calm()
        samples = burst(step, calls, seconds / ROUNDS)
        spent = calls * sum(sample.processor for sample in samples)
        disturbed = sum(sample.preempted for sample in samples)
        return Round(times(samples), spent, disturbed, load.calm() and before)

    return rounds(take, seconds)


def rounds(take: Callable[[], Round], seconds: float) -> Latency:
    """Rounds of so many seconds in all, and more until they settle or the overtime ends."""
    found = [take()]
    end = time.perf_counter() + MAX_OVERTIME * seconds
    while time.perf_counter() < end or len(found) < LEAST_ROUNDS:
        found.append(take())
        enough = len(found) >= LEAST_ROUNDS and sum(one.spent for one in found) >= seconds
        if enough and settled(found):
            break
    every = [s for one in found for s in one.seconds]
    return summary(every, sum(one.disturbed for one in found), settled(found))


def settled(found: Sequence[Round]) -> bool:
    """Whether the two best of the calm rounds reached the same minimum."""
    best = sorted(min(one.seconds) for one in found if one.calm and one.seconds)
    return len(best) > 1 and best[1] <= SETTLED * best[0]


def summary(seconds: Sequence[float], disturbed: int, settled: bool) -> Latency:
    """The samples as a latency in milliseconds."""
    ms = [1e3 * each for each in seconds]
    p20, *_, p80 = statistics.quantiles(ms * 2 if len(ms) == 1 else ms, n=5, method="inclusive")
    return Latency(min(ms), p20, statistics.median(ms), p80, len(ms), disturbed, settled)


class ReferenceLoad:
    """A small fixed computation, timed around each round to detect a slowed machine."""

    def __init__(self) -> None:
        self.matrix = torch.randn(96, 96, generator=torch.Generator().manual_seed(0))
        self.least = min(self.time() for _ in range(20))

    def calm(self) -> bool:
        """Whether it runs at the best speed that it has had."""
        now = self.time()
        self.least = min(self.least, now)
        return now <= CALM * self.least

    def time(self) -> float:
        """Seconds that it takes now."""
        return min(times(burst(self._compute, 1, 0.0, 3)))

    @torch.inference_mode()
    def _compute(self) -> None:
        for _ in range(3):
            self.matrix @ self.matrix
        for _ in range(10):
            (self.matrix[:2] @ self.matrix).sigmoid()


_reference_load = functools.cache(ReferenceLoad)  # one per process, which knows its best time


@contextlib.contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Run torch's operators on so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
