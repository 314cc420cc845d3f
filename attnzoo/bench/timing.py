"""How long: median and spread of a row's passes, and of a pulse in between them."""

import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.benchmark import Timer

from . import cuda
from .passes import Pass, Passes
from .row import Latency as Latency
from .settings import Settings

ROUNDS = 5  # spread over a row's whole time, so that the interval has seen a neighbor come and go
LEAST = 3  # rounds, where single calls outlast the time that was given
PATIENCE = 15  # times that time
SAMPLE = 0.0005  # seconds of calls in a row that are one sample
CALM = 3  # samples without a wait, where it is they that count
PULSE_EVERY = 0.004  # seconds of samples between two pulses


def times(passes: Passes, settings: Settings) -> dict[str, Any]:
    """A row's latencies and clock: `min_time` seconds a pass, round after round."""
    clocks = cuda.Clocks(settings.device) if settings.kind == "cuda" else None
    found: dict[str, list[float]] = defaultdict(list)
    beat = Pulse(settings)
    relative: dict[str, list[Ratio]] = defaultdict(list)
    share = settings.min_time / ROUNDS
    end = time.perf_counter() + PATIENCE * settings.min_time

    def turn(name: str, one: Pass, cold: bool = False) -> None:
        with one.ready() as step:
            found[name] += samples(step, settings, share, beat, clocks, cold)
        relative[name] += beat.ratios()

    for count in range(ROUNDS):
        if count >= LEAST and time.perf_counter() > end:
            break
        for name, one in passes._asdict().items():
            turn(f"latency_{name}", one)
            if settings.cold and name != "train_forward":
                turn(f"latency_{name}_cold", one, cold=True)
    return {
        "sm_clock_mhz": clocks.mhz if clocks else None,
        "throttle": clocks.throttle if clocks else None,
        "latency_forward_cold": None,
        "latency_training_cold": None,
        **{name: _latency(sampled, relative[name]) for name, sampled in found.items()},
    }


def samples(
    step: Callable[[], Any],
    settings: Settings,
    seconds: float,
    beat: "Pulse",
    clocks: cuda.Clocks | None = None,
    cold: bool = False,
) -> list[float]:
    """Milliseconds of one call, sample by sample, for about as long as asked for."""
    if settings.kind == "cuda":
        found = cuda.samples(step, settings.device, seconds, clocks, cold)
        beat.waiting += [(ms, False) for ms in found]
        return found
    once = min(cpu_timer(step).timeit(1).times)
    calls = max(1, round(SAMPLE / once))  # a single short call is at the mercy of what was before

    def between(number: int, taken: float) -> None:
        beat.between(number * calls, taken)

    timed: Any = cpu_timer(step, calls)  # the stub's callback can be given nothing
    return [1e3 * t / calls for t in timed.blocked_autorange(between, seconds).times]


def cpu_timer(step: Callable[[], Any], calls: int = 1) -> Timer:
    """torch's own timer of so many calls, with as many threads as torch has now."""
    return Timer(
        "for _ in range(calls): step()",
        globals={"step": step, "calls": calls},
        timer=time.perf_counter,
        num_threads=torch.get_num_threads(),
    )


class Beat(NamedTuple):
    """One pulse, in milliseconds."""

    wall: float
    calm: float  # without waits for a processor


class Ratio(NamedTuple):
    """One sample over the pulses beside it."""

    wall: float
    calm: float | None  # the same without waits for a processor; None where the sample had one


class Pulse:
    """A fixed piece of work beside a row's samples, which it is the measure of.

    What slows a shared machine down comes and goes within milliseconds. A neighbor on the same core
    slows the pulses before and after a sample as it slows the sample, so their ratio stays where
    times move by a half. One that takes the processor away is told by the system: such samples
    count only where there are hardly others.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.step = pulse(settings.device)
        self.step()
        self.last = self._time()
        self.waiting: list[tuple[float, bool]] = []  # samples since then: milliseconds, disturbed
        self._owed = 0.0  # seconds that they took
        self._found: list[Ratio] = []
        self._waits = waits()

    def between(self, number: int, seconds: float) -> None:
        """Called after every block of `number` calls, which are one sample."""
        self.waiting.append((1e3 * seconds / number, waits() != self._waits))
        self._owed += seconds
        if self._owed >= PULSE_EVERY:
            self.take()
        self._waits = waits()

    def take(self) -> None:
        """Time a pulse now, and hold the samples since the last one to both."""
        before, self.last, self._owed = self.last, self._time(), 0.0
        wall = math.sqrt(before.wall * self.last.wall)
        calm = math.sqrt(before.calm * self.last.calm)
        for sample, disturbed in self.waiting:
            self._found.append(Ratio(sample / wall, None if disturbed else sample / calm))
        self.waiting.clear()

    def ratios(self) -> list[Ratio]:
        """Every sample since the last call, in pulses."""
        self.take()
        found, self._found, self._waits = self._found, [], waits()
        return found

    def _time(self) -> Beat:
        if self.settings.kind == "cuda":
            ms = statistics.median(cuda.samples(self.step, self.settings.device, 0.0))
            return Beat(ms, ms)
        wall, calm = time.perf_counter(), time.thread_time()
        self.step()
        return Beat(1e3 * (time.perf_counter() - wall), 1e3 * (time.thread_time() - calm))


def waits() -> int:
    """How often this thread had to give its processor away; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def pulse(device: str) -> Callable[[], Any]:
    """Two to three milliseconds of one core: a few large operators, then many small ones."""
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    square, wide = normal(128, 128), normal(64, 1024)
    image, kernel = normal(2, 8, 7, 7), normal(8, 8, 3, 3)
    vector, weight = normal(2, 16), normal(16, 16)

    def work() -> Any:
        with torch.inference_mode():
            for _ in range(2):
                product = (square @ square).relu().softmax(1)
                gate = (wide.sigmoid() * wide + wide.mean(1, keepdim=True)).amax(0)
            for _ in range(8):
                means = functional.conv2d(image, kernel, padding=1).relu().mean((2, 3))
                small = functional.linear(vector, weight).sigmoid().softmax(-1) + vector
                small = (2 * means.unsqueeze(-1)).transpose(1, 2).reshape(-1) + small
            return product, gate, small

    return work


def _latency(found: list[float], relative: list[Ratio]) -> Latency:
    calm = [one.calm for one in relative if one.calm is not None]
    pulses = calm if len(calm) >= CALM else [one.wall for one in relative]
    middle, fifths = statistics.median(found), statistics.quantiles(found, n=5, method="inclusive")
    beside = 1e3 * middle / statistics.median(pulses)
    return Latency(middle, fifths[0], fifths[3], len(found), beside)
