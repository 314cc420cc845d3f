"""How long: median and spread of a row's passes, and of a pulse in between them."""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

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
PULSE_EVERY = 0.004  # seconds of samples between two pulses


def times(passes: Passes, settings: Settings) -> dict[str, Any]:
    """A row's latencies, pulse and clock: `min_time` seconds a pass, round after round."""
    clocks = cuda.Clocks(settings.device) if settings.kind == "cuda" else None
    found: dict[str, list[float]] = defaultdict(list)
    beat = Pulse(settings)
    relative: dict[str, list[float]] = defaultdict(list)
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
        beat.waiting += found
        return found
    between: Any = beat.between  # the stub's callback can be given nothing
    return [1e3 * t for t in cpu_timer(step).blocked_autorange(between, seconds).times]


def cpu_timer(step: Callable[[], Any]) -> Timer:
    """torch's own timer, with as many threads as torch has now."""
    threads = torch.get_num_threads()
    return Timer("step()", globals={"step": step}, timer=time.perf_counter, num_threads=threads)


class Pulse:
    """A fixed piece of work beside a row's samples, which it is the measure of.

    What slows a shared machine down comes and goes within milliseconds, a neighbor on the same core
    above all. It slows the pulses before and after a sample as it slows the sample, so their ratio
    stays where times move by a half.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.step = pulse(settings.device)
        self.step()
        self.last = self._time()
        self._owed = 0.0  # seconds of samples since then
        self.waiting: list[float] = []  # and those samples, milliseconds
        self._found: list[float] = []

    def between(self, number: int, seconds: float) -> None:
        """Called after every block of `number` calls, which are one sample."""
        self.waiting.append(1e3 * seconds / number)
        self._owed += seconds
        if self._owed >= PULSE_EVERY:
            self.take()

    def take(self) -> None:
        """Time a pulse now, and hold the samples since the last one to both."""
        before, self.last, self._owed = self.last, self._time(), 0.0
        beside = math.sqrt(before * self.last)
        self._found += [sample / beside for sample in self.waiting]
        self.waiting.clear()

    def ratios(self) -> list[float]:
        """Every sample since the last call, in pulses."""
        self.take()
        found, self._found = self._found, []
        return found

    def _time(self) -> float:
        if self.settings.kind == "cuda":
            return statistics.median(cuda.samples(self.step, self.settings.device, 0.0))
        start = time.perf_counter()
        self.step()
        return 1e3 * (time.perf_counter() - start)


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


def _latency(found: list[float], relative: list[float]) -> Latency:
    middle, fifths = statistics.median(found), statistics.quantiles(found, n=5, method="inclusive")
    beside = 1e3 * middle / statistics.median(relative)
    return Latency(middle, fifths[0], fifths[3], len(found), beside)
