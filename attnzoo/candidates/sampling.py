"""Times one network against another: alternating samples, ratios of least times, an interval.

A shared machine slows both alike, so that the ratio of their least times holds where the times
themselves do not. The interval says how far the ratio of single rounds was from it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..bench.timing.sample import Sample, Step, burst, calls_per_sample

ROUNDS = 5  # at least; in each, both sides have two bursts: A B B A
MOST_ROUNDS = 30
COVERAGE = 0.9  # of the interval


class Ratio(NamedTuple):
    """How many times the plain network's time another one takes."""

    value: float  # least time over least time
    low: float
    high: float
    plain_ms: float  # least time of the plain network

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}-{self.high:.2f})"


def compared(plain: Step, other: Step, seconds: float, *, wall: bool = False) -> Ratio:
    """The ratio of two steps' times, from `seconds` of samples of each, or a few rounds.

    Args:
        plain, other: called without arguments, and warm.
        seconds: of samples of either side, unless the fewest rounds take longer.
        wall: take wall time, as for devices that a call waits for, and not the thread's own.
    """
    sides = (plain, other)
    calls = [calls_per_sample(step) for step in sides]
    found: list[tuple[list[Sample], list[Sample]]] = []
    spent = 0.0
    while len(found) < ROUNDS or (spent < seconds and len(found) < MOST_ROUNDS):
        one: tuple[list[Sample], list[Sample]] = ([], [])
        for side in (0, 1, 1, 0):
            one[side].extend(burst(sides[side], calls[side], 0.0))
        found.append(one)
        spent += max(sum(calls[side] * s.wall for s in one[side]) for side in (0, 1))
    return _ratio(found, wall or _waits(found))


def _waits(found: list[tuple[list[Sample], list[Sample]]]) -> bool:
    """Whether waiting for other threads is part of either side, so that wall time counts."""
    sides = zip(*found, strict=True)
    samples = [[s for one in side for s in one] for side in sides]
    return any(2 * sum(s.waited for s in side) > len(side) for side in samples)


def _ratio(found: list[tuple[list[Sample], list[Sample]]], wall: bool) -> Ratio:
    def least(samples: list[Sample]) -> float:
        return min(s.wall if wall else s.processor for s in samples)

    rounds = sorted(least(b) / least(a) for a, b in found)
    plain, other = (min(least(one[side]) for one in found) for side in (0, 1))
    cut = dropped(len(rounds))
    value = other / plain
    low, high = min(value, rounds[cut]), max(value, rounds[-1 - cut])
    return Ratio(value, low, high, 1e3 * plain)


def dropped(rounds: int) -> int:
    """How many of the smallest and of the largest an interval of the median leaves out."""
    outside, cut = 0.0, 0
    while True:
        outside += 2 * math.comb(rounds, cut) / 2**rounds
        if 1 - outside < COVERAGE:
            return max(0, cut - 1)
        cut += 1


def synchronized(step: Callable[[], Any], device: torch.device) -> Step:
    """The step and, on an accelerator, the wait for its end."""
    if device.type == "cpu":
        return step
    module = getattr(torch, device.type)

    def waited() -> None:
        step()
        module.synchronize(device)

    return waited
