"""The clock of the CPU: the latency of a pass is the least of many short samples.

On a busy machine a thread is preempted for milliseconds at a time, and slowed for a second or more
by other processes on the same core. So a sample lasts half a millisecond (or one call, if that is
longer) and is measured in thread CPU time. Samples are taken in rounds, until two rounds reach the
same least time while a reference load runs at its best speed.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..row import Latency
from .sample import Step, burst, calls_per_sample, times

ROUNDS = 6  # that the time asked for is spent in
LEAST_ROUNDS = 3
MAX_OVERTIME = 6  # times the time asked for, of the wall's clock
SETTLED = 1.03  # two rounds reach the same least time where they are closer than this
CALM = 1.1  # of the reference load's best time: the machine runs at its own speed


class Round(NamedTuple):
    """Samples taken one right after the other."""

    seconds: list[float]  # of one call, sample by sample
    spent: float  # seconds of all calls
    disturbed: int  # samples that the system interrupted, or that were thrown away
    calm: bool  # the machine ran at its own speed


def latency(step: Step, seconds: float) -> Latency:
    """What a pass costs on the CPU."""
    calls, load = calls_per_sample(step), reference_load()

    def take() -> Round:
        before = load.calm()
        samples = burst(step, calls, seconds / ROUNDS)
        spent = calls * sum(sample.processor for sample in samples)
        disturbed = sum(sample.preempted for sample in samples)
        return Round(times(samples), spent, disturbed, load.calm() and before)

    return rounds(take, seconds)


def rounds(take: Callable[[], Round], seconds: float) -> Latency:
    """Rounds worth `seconds`, and as many more as it takes to settle, within the overtime."""
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
    """Whether the two best of the calm rounds reached the same least time."""
    best = sorted(min(one.seconds) for one in found if one.calm and one.seconds)
    return len(best) > 1 and best[1] <= SETTLED * best[0]


def summary(seconds: Sequence[float], disturbed: int, settled: bool) -> Latency:
    """The samples as a latency in milliseconds."""
    ms = sorted(1e3 * each for each in seconds)
    fifths = statistics.quantiles(ms, n=5, method="inclusive") if len(ms) > 1 else 4 * ms
    middle = statistics.median(ms)
    return Latency(ms[0], fifths[0], middle, fifths[3], len(ms), disturbed, settled)


class ReferenceLoad:
    """A small fixed computation, timed around each round to detect a slowed machine."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(96, 96, generator=generator)
        self.least = math.inf
        for _ in range(20):
            self.calm()

    def calm(self) -> bool:
        """Whether it runs at the best speed that it ever had."""
        now = self.time()
        self.least = min(self.least, now)
        return now <= CALM * self.least

    def time(self) -> float:
        """Seconds that it takes now."""
        return min(times(burst(self._work, 1, 0.0, 3)))

    def _work(self) -> None:
        with torch.inference_mode():
            for _ in range(3):
                product = self.matrix @ self.matrix
            for _ in range(10):
                product = (self.matrix[:2] @ self.matrix).sigmoid()
            del product


@functools.cache
def reference_load() -> ReferenceLoad:
    """The one of this process: its best time is that of the whole run."""
    return ReferenceLoad()
