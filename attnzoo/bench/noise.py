"""The machine's own part in a change: what all rows did together, and how far apart.

A shared machine is slower when its neighbors work, by half and more, for milliseconds or minutes.
The median of a row's samples in pulses, each over those right before and after it, is what two runs
have in common: of a row that has not changed it moves by a few hundredths where medians of
milliseconds move by a half.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from .match import Pair
from .row import Latency, Row

TIMES = ("latency_forward", "latency_training")
OUTLYING = 3.5  # spreads of the other rows
UNLIKE = 0.35  # of the pulse's own shift, by which a row may have moved more or less than it
ENOUGH = 12  # times, of six rows, for a spread to be told from
ASSUMED = 0.05  # spread of fewer rows, in logarithms


class Shift(NamedTuple):
    """How one time, or most of them, changed between two runs, in logarithms."""

    time: float  # against the pulses beside its samples
    pulse: float  # those pulses themselves


class Noise(NamedTuple):
    """What the machine did to every row between two runs, in logarithms."""

    drift: Shift  # what most rows did
    spread: float  # of single rows' times around that


class Move(NamedTuple):
    """One time in both runs: new over old without the drift, the interval, what it amounts to."""

    ratio: float
    low: float
    high: float
    verdict: Literal["same", "slower", "faster"]


def noise(found: Sequence[Pair]) -> Noise:
    """The noise between two runs, from all rows that both have."""
    both = [(a, b) for a, b in found if isinstance(a, Row) and isinstance(b, Row)]
    shifts = [shift(a, b, name) for a, b in both for name in TIMES]
    if len(shifts) < ENOUGH:
        return Noise(Shift(0.0, 0.0), ASSUMED)
    drift = Shift(*map(statistics.median, zip(*shifts, strict=True)))
    apart = sorted(abs(one.time - drift.time) for one in shifts)
    return Noise(drift, max(1.48 * statistics.median(apart), apart[4 * len(apart) // 5] / 1.28))


def shift(old: Row, new: Row, name: str) -> Shift:
    """How a time of one row moved."""
    a: Latency = getattr(old, name)
    b: Latency = getattr(new, name)
    pulse = math.log(b.pulse_us / a.pulse_us)
    return Shift(math.log(b.median / a.median) - pulse, pulse)


def moved(shift: Shift, tolerance: float, among: Noise) -> Move:
    """Whether one time moved: past the tolerance, and by more than the noise."""
    width = _width(shift, among)
    return _move(shift.time - among.drift.time, width, max(math.log1p(tolerance), width))


def together(tolerance: float, among: Noise) -> Move:
    """Whether all rows moved against the pulse, as a change to what they share makes them do."""
    width = _width(among.drift, among)
    return _move(among.drift.time, width, math.log1p(tolerance) + width)


def _width(shift: Shift, among: Noise) -> float:
    """Half the interval of a shift: the spread, and that no row follows the pulse to the letter."""
    return math.hypot(OUTLYING * among.spread, UNLIKE * shift.pulse)


def _move(own: float, width: float, least: float) -> Move:
    ends = math.exp(own), math.exp(own - width), math.exp(own + width)
    return Move(*ends, "same" if abs(own) <= least else "slower" if own > 0 else "faster")
