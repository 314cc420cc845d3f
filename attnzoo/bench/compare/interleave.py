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
RESOLUTION = 0.03  # least times of unchanged code are this close: a true tenth may read as 7 %

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
        """Whether the time changed by the tolerance, and by more than the drift, to within 3 %."""
        moved, drift = math.log(self.ratio), abs(math.log(self.drift))
        if abs(moved) <= max(_line(tolerance), drift + RESOLUTION):
            return "same"
        return "slower" if moved > 0 else "faster"

    def decided(self, tolerance: float) -> bool:
        """Whether more samples, which only lower least times, would hardly change the verdict."""
        near = abs(abs(math.log(self.ratio)) - _line(tolerance)) <= RESOLUTION
        return not near and abs(math.log(self.drift)) <= RESOLUTION


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
        if enough and (most or timing.decided(tolerance)):
            return timing


def _line(tolerance: float) -> float:
    """The logarithm of the least ratio that is a change."""
    return max(math.log1p(tolerance) - RESOLUTION, math.log1p(tolerance) / 2)
