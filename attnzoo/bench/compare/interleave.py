"""Decides which of two versions is slower, from alternating samples of both and a null copy.

A shared machine may run at half its speed for milliseconds or seconds, so two measurements one
after the other can differ by a factor of two. Alternating samples run under the same conditions,
and the minimum of each side is a sample without interference. The null copy is a second copy of the
first version: the ratio of their minima shows the error of the measurement.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

LEAST_SAMPLES = 40  # of each side
FEWEST = 6  # of each side, once they have taken the budget
BURST = 5  # samples in a row of one side
BUDGET = 1.0  # seconds of samples of each side
EXTENDED = 4  # times LEAST_SAMPLES or the budget, unless the times are clearly the same
RESOLUTION = 0.03  # minima of unchanged code differ by this: a ratio of 1.10 may be read as 1.07

Burst = Callable[[int], list[float]]  # so many samples of a side, in seconds of one call
Verdict = Literal["same", "slower", "faster"]
ORDER = ("a", "null", "b", "b", "null", "a")


class Timing(NamedTuple):
    """The minimum times of both sides and of the null copy, in seconds of one call."""

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
        """The null copy's time over the first's: 1, except for measurement error."""
        return self.null / self.a

    def verdict(self, tolerance: float) -> Verdict:
        """Whether the time changed by the tolerance, to within 3 %, and by more than the drift."""
        moved, drift = math.log(self.ratio), abs(math.log(self.drift))
        if abs(moved) <= max(_threshold(tolerance), drift + RESOLUTION):
            return "same"
        return "slower" if moved > 0 else "faster"

    def decided(self, tolerance: float) -> bool:
        """Whether it is the same by a margin; a change takes all the samples that are allowed."""
        moved, drift = abs(math.log(self.ratio)), abs(math.log(self.drift))
        return moved < _threshold(tolerance) - RESOLUTION and drift <= RESOLUTION


class Change(NamedTuple):
    """One quantity of one block on both sides, or why a side has none."""

    row: str
    quantity: str
    a: float | None
    b: float | None
    verdict: str  # same, slower, faster, more, less, larger, fails, works, fails still, gone, added
    null: float | None = None  # a second copy of A over A: 1, except for measurement error
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """The second over the first."""
        return self.b / self.a if self.a and self.b is not None else None

    @property
    def regression(self) -> bool:
        """Whether B is worse than A."""
        return self.verdict in ("slower", "larger", "fails")


def interleave(sides: Mapping[str, Burst], tolerance: float, budget: float = BUDGET) -> Timing:
    """The minimum times of `a`, `b` and `null`, sampled in turn until the verdict is decided."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    burst = BURST
    while True:
        for name in ORDER:
            found[name] += sides[name](burst)
        count = len(found["a"])
        timing = Timing(min(found["a"]), min(found["null"]), min(found["b"]), count)
        spent = count * timing.a
        if timing.a > budget / LEAST_SAMPLES:
            burst = 1
        enough = count >= LEAST_SAMPLES or (count >= FEWEST and spent >= budget)
        most = count >= EXTENDED * LEAST_SAMPLES or spent >= EXTENDED * budget
        if enough and (most or timing.decided(tolerance)):
            return timing


def _threshold(tolerance: float) -> float:
    """The logarithm of the smallest ratio that counts as a change."""
    return max(math.log1p(tolerance) - RESOLUTION, math.log1p(tolerance) / 2)
