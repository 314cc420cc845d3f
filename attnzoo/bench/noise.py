"""The machine's own part in a change: what all rows did together, and how far apart."""

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from .match import Pair
from .row import Latency, Row

TIMES = ("latency_forward", "latency_training")
OUTLYING = 4  # spreads of the other rows; by chance some of hundreds of rows pass 3
ENOUGH = 12  # times, of six rows, for a spread to be told from


class Noise(NamedTuple):
    """What the machine did to every row between two runs."""

    pulse: float  # how many times as long the reference workload took
    drift: float  # how many times as long the rows took, most of them; of few rows the pulse
    spread: float | None  # of single rows around that, in logarithms; None with few rows


class Move(NamedTuple):
    """One time in both runs: new over old without the drift, the interval, what it amounts to."""

    ratio: float
    low: float
    high: float
    verdict: Literal["same", "slower", "faster"]


def noise(found: Sequence[Pair]) -> Noise:
    """The noise between two runs.

    It is taken at the 20th percentiles: neighbors on a shared machine only ever add time, in
    bursts longer than a row, so that the fast end of a distribution is what two runs share.
    """
    both = [(a, b) for a, b in found if isinstance(a, Row) and isinstance(b, Row)]
    if not both:
        return Noise(1.0, 1.0, None)
    pulse = _fast([b.pulse_ms for _, b in both]) / _fast([a.pulse_ms for a, _ in both])
    moves = [
        math.log(getattr(new, name).p20 / getattr(old, name).p20)
        for old, new in both
        for name in TIMES
    ]
    if len(moves) < ENOUGH:
        return Noise(pulse, pulse, None)
    common = statistics.median(moves)
    apart = sorted(abs(move - common) for move in moves)
    spread = max(1.48 * statistics.median(apart), apart[4 * len(apart) // 5] / 1.28)
    return Noise(pulse, math.exp(common), spread)


def moved(old: Latency, new: Latency, tolerance: float, among: Noise, beat: float = 1.0) -> Move:
    """Whether one time moved.

    It did where its 20th percentile is past the tolerance and stands out of what the other rows
    did by `OUTLYING` spreads, and where the fast end of the slower run is above the middle of the
    faster one; with too few rows for a spread, above its slow end, the 80th percentile. `beat`,
    the move of the row's own pulse, excuses as much: a burst that hit the row hit its pulse too.
    """
    end = "p80" if among.spread is None else "median"
    ratio = new.p20 / old.p20 / among.drift
    low = new.p20 / getattr(old, end) / among.drift
    high = getattr(new, end) / old.p20 / among.drift
    least = max(math.log1p(tolerance), OUTLYING * (among.spread or 0.0))
    excuse = math.log(beat / among.drift)
    if low > 1 and math.log(ratio) > least + max(0.0, excuse):
        return Move(ratio, low, high, "slower")
    if high < 1 and math.log(ratio) < -least + min(0.0, excuse):
        return Move(ratio, low, high, "faster")
    return Move(ratio, low, high, "same")


def together(tolerance: float, among: Noise) -> Move:
    """Whether all rows moved against the pulse, as a change to what they share makes them do."""
    ratio = among.drift / among.pulse
    width = math.exp(OUTLYING * (among.spread or 0.0))
    least = math.log1p(tolerance) + math.log(width)
    if abs(math.log(ratio)) <= least:
        return Move(ratio, ratio / width, ratio * width, "same")
    return Move(ratio, ratio / width, ratio * width, "slower" if ratio > 1 else "faster")


def _fast(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 5]
