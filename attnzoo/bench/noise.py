"""The machine's own part in a change: what all rows did together, and how far apart.

A shared machine is slower when its neighbors work, by half and more, for milliseconds or minutes.
The fastest sample of a row and the fastest of the pulses in between are both from its best moments,
so their ratio is what two runs have in common: of a row that has not changed it moves by a few
hundredths where medians move by a half.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from .match import Pair
from .row import Latency, Row

TIMES = ("latency_forward", "latency_training")
OUTLYING = 3  # spreads of the other rows
ENOUGH = 12  # times, of six rows, for a spread to be told from
ASSUMED = 0.07  # spread of fewer rows, in logarithms


class Noise(NamedTuple):
    """What the machine did to every row between two runs, in logarithms."""

    drift: float  # what most rows did, against their pulses
    spread: float  # of single rows around that


class Move(NamedTuple):
    """One time in both runs: new over old without the drift, the interval, what it amounts to."""

    ratio: float
    low: float
    high: float
    verdict: Literal["same", "slower", "faster"]


def noise(found: Sequence[Pair]) -> Noise:
    """The noise between two runs, from all rows that both have."""
    both = [(a, b) for a, b in found if isinstance(a, Row) and isinstance(b, Row)]
    moves = [shift(a, b, name) for a, b in both for name in TIMES]
    if len(moves) < ENOUGH:
        return Noise(0.0, ASSUMED)
    common = statistics.median(moves)
    apart = sorted(abs(move - common) for move in moves)
    return Noise(common, max(1.48 * statistics.median(apart), apart[4 * len(apart) // 5] / 1.28))


def shift(old: Row, new: Row, name: str) -> float:
    """How a time moved against the row's own pulse, fastest to fastest, in logarithms."""
    a: Latency = getattr(old, name)
    b: Latency = getattr(new, name)
    return math.log(b.least / a.least) - math.log(new.pulse_least_ms / old.pulse_least_ms)


def moved(shift: float, tolerance: float, among: Noise) -> Move:
    """Whether one time moved: past the tolerance, and by more than the noise."""
    width = OUTLYING * among.spread
    return _move(shift - among.drift, width, max(math.log1p(tolerance), width))


def together(tolerance: float, among: Noise) -> Move:
    """Whether all rows moved against the pulse, as a change to what they share makes them do."""
    width = OUTLYING * among.spread
    return _move(among.drift, width, math.log1p(tolerance) + width)


def _move(own: float, width: float, least: float) -> Move:
    ends = math.exp(own), math.exp(own - width), math.exp(own + width)
    return Move(*ends, "same" if abs(own) <= least else "slower" if own > 0 else "faster")
