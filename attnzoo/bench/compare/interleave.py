"""Decides which of two versions is slower, from alternating samples of both and a null copy.

A shared machine may run at half its speed for milliseconds or seconds, so two measurements taken
one after the other can differ by a factor of two. Alternating samples run under the same
conditions, and the minimum of each side is a sample without interference. The null copy is a second
copy of the first version: the ratio of its minimum to the first's is the error of the measurement.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

LEAST_SAMPLES = 40  # of each side
FEWEST = 6  # of each, where a call is so long that these take the budget
BURST = 5  # samples before the next side has its turn
BUDGET = 1.0  # seconds of samples of each side, from which on FEWEST are enough
PATIENCE = 4  # times LEAST_SAMPLES, while it is undecided
UNDECIDED = 0.03  # more samples while the drift is larger, or the ratio this near the tolerance

Burst = Callable[[int], list[float]]  # so many samples of a side, in seconds of one call
Verdict = Literal["same", "slower", "faster"]
ORDER = ("a", "null", "b", "b", "null", "a")


class Timing(NamedTuple):
    """The least times of both sides and of the null copy of the first, in seconds of one call."""

    a: float
    null: float
    b: float
    samples: int

    @property
    def ratio(self) -> float:
        """The second's time over the first's."""
        return self.b / self.a

    @property
    def drift(self) -> float:
        """The null copy's time over the first's, which is 1 except for measurement error."""
        return self.null / self.a

    def verdict(self, tolerance: float) -> Verdict:
        """Whether the time changed by more than the tolerance and by more than the drift."""
        moved = math.log(self.ratio)
        if abs(moved) <= max(math.log1p(tolerance), abs(math.log(self.drift))):
            return "same"
        return "slower" if moved > 0 else "faster"


def interleave(sides: Mapping[str, Burst], tolerance: float) -> Timing:
    """The least times of `a`, `b` and `null`, sampled in turn until the verdict is decided."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    burst = BURST
    while True:
        for name in ORDER:
            found[name] += sides[name](burst)
        count = len(found["a"])
        timing = Timing(min(found["a"]), min(found["null"]), min(found["b"]), count)
        spent = count * timing.a
        if timing.a > BUDGET / LEAST_SAMPLES:
            burst = 1
        enough = count >= LEAST_SAMPLES or (count >= FEWEST and spent >= BUDGET)
        most = count >= PATIENCE * LEAST_SAMPLES or spent >= PATIENCE * BUDGET
        if enough and (most or decided(timing, tolerance)):
            return timing


def decided(timing: Timing, tolerance: float) -> bool:
    """Whether more samples, which only lower least times, would hardly change the verdict."""
    if abs(math.log(timing.drift)) > UNDECIDED:
        return False
    return abs(abs(math.log(timing.ratio)) - math.log1p(tolerance)) > UNDECIDED
