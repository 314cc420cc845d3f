"""How long: median and spread of a row's passes, and of a pulse in between them."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
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
    share = settings.min_time / ROUNDS
    end = time.perf_counter() + PATIENCE * settings.min_time
    for turn in range(ROUNDS):
        if turn >= LEAST and time.perf_counter() > end:
            break
        for name, one in passes._asdict().items():
            found[name] += _ready(one, settings, share, beat, clocks)
            if settings.cold and name != "train_forward":
                found[f"{name}_cold"] += _ready(one, settings, share, beat, clocks, cold=True)
            beat.take()
    return {
        "pulse_ms": statistics.median(beat.samples),
        "pulse_least_ms": min(beat.samples),
        "sm_clock_mhz": clocks.mhz if clocks else None,
        "throttle": clocks.throttle if clocks else None,
        "latency_forward_cold": None,
        "latency_training_cold": None,
        **{f"latency_{name}": _latency(sampled) for name, sampled in found.items()},
    }


def samples(
    step: Callable[[], Any],
    settings: Settings,
    seconds: float,
    beat: "Pulse | None" = None,
    clocks: cuda.Clocks | None = None,
    cold: bool = False,
) -> list[float]:
    """Milliseconds of one call, sample by sample, for about as long as asked for."""
    if settings.kind == "cuda":
        return cuda.samples(step, settings.device, seconds, clocks, cold)
    between: Any = beat and beat.between
    return [1e3 * t for t in cpu_timer(step).blocked_autorange(between, seconds).times]


def cpu_timer(step: Callable[[], Any]) -> Timer:
    """torch's own timer, with as many threads as torch has now."""
    threads = torch.get_num_threads()
    return Timer("step()", globals={"step": step}, timer=time.perf_counter, num_threads=threads)


class Pulse:
    """The reference workload of one row, timed in between samples of its passes.

    What slows a shared machine down comes and goes within milliseconds, a neighbor on the same
    core above all, so the pulse has to follow as closely.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.step = pulse(settings.device)
        self.samples: list[float] = []
        self._owed = 0.0

    def between(self, number: int, seconds: float) -> None:
        """Called after every block of samples, with the seconds it took."""
        self._owed += seconds
        if self._owed >= PULSE_EVERY:
            self.take()

    def take(self) -> None:
        """Time one pulse now."""
        self._owed = 0.0
        if self.settings.kind == "cuda":
            self.samples += cuda.samples(self.step, self.settings.device, 0.0)
            return
        start = time.perf_counter()
        self.step()
        self.samples.append(1e3 * (time.perf_counter() - start))


def pulse(device: str) -> Callable[[], Any]:
    """A fixed piece of work, about a millisecond of one core: products, elementwise, reductions."""
    generator = torch.Generator("cpu").manual_seed(0)
    a = torch.randn(128, 128, generator=generator).to(device)
    x = torch.randn(64, 1024, generator=generator).to(device)

    def work() -> Any:
        with torch.inference_mode():
            for _ in range(4):
                product = (a @ a).relu().softmax(1)
                gate = (x.sigmoid() * x + x.mean(1, keepdim=True)).amax(0)
            return product, gate

    return work


def _ready(
    one: Pass,
    settings: Settings,
    seconds: float,
    beat: Pulse,
    clocks: cuda.Clocks | None,
    cold: bool = False,
) -> list[float]:
    with one.ready() as step:
        return samples(step, settings, seconds, beat, clocks, cold)


def _latency(found: list[float]) -> Latency:
    fifths = statistics.quantiles(found, n=5, method="inclusive")
    return Latency(statistics.median(found), fifths[0], fifths[3], len(found), min(found))
