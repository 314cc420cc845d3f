"""How long: median and spread of a row's passes, and of a pulse in between them."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.benchmark import Timer

from . import cuda
from .passes import Pass, Passes
from .row import Latency as Latency
from .settings import Settings

ROUNDS = 5  # spread over a row's whole time, so that the interval has seen a neighbor come and go
PULSE_SHARE = 0.1


@dataclass(frozen=True)
class Times:
    """All that the clock says of a row."""

    forward: Latency
    train_forward: Latency
    training: Latency
    forward_cold: Latency | None
    training_cold: Latency | None
    pulse_ms: float
    sm_clock_mhz: float | None
    throttle: str | None


def times(passes: Passes, settings: Settings) -> Times:
    """Sample every pass in turn, round after round, `min_time` seconds each in all."""
    clocks = cuda.Clocks(settings.device) if settings.kind == "cuda" else None
    found: dict[str, list[float]] = defaultdict(list)
    beat = pulse(settings.device)
    share = settings.min_time / ROUNDS
    for _ in range(ROUNDS):
        for name, one in passes._asdict().items():
            found[name] += _ready(one, settings, share, clocks)
            if settings.cold and name != "train_forward":
                found[f"{name}_cold"] += _ready(one, settings, share, clocks, cold=True)
        found["pulse"] += samples(beat, settings, PULSE_SHARE * share)
    return Times(
        forward=_latency(found["forward"]),
        train_forward=_latency(found["train_forward"]),
        training=_latency(found["training"]),
        forward_cold=_latency(found["forward_cold"]) if settings.cold else None,
        training_cold=_latency(found["training_cold"]) if settings.cold else None,
        pulse_ms=statistics.median(found["pulse"]),
        sm_clock_mhz=clocks.mhz if clocks else None,
        throttle=clocks.throttle if clocks else None,
    )


def samples(
    step: Callable[[], Any],
    settings: Settings,
    seconds: float,
    clocks: cuda.Clocks | None = None,
    cold: bool = False,
) -> list[float]:
    """Milliseconds of one call, sample by sample, for about as long as asked for."""
    if settings.kind == "cuda":
        return cuda.samples(step, settings.device, seconds, clocks, cold)
    return [1e3 * t for t in cpu_timer(step).blocked_autorange(min_run_time=seconds).times]


def cpu_timer(step: Callable[[], Any]) -> Timer:
    """torch's own timer, with as many threads as torch has now."""
    threads = torch.get_num_threads()
    return Timer("step()", globals={"step": step}, timer=time.perf_counter, num_threads=threads)


def pulse(device: str) -> Callable[[], Any]:
    """A fixed piece of work, about a millisecond of one core: products, elementwise, reductions."""
    generator = torch.Generator("cpu").manual_seed(0)
    a = torch.randn(128, 128, generator=generator).to(device)
    x = torch.randn(64, 1024, generator=generator).to(device)

    def work() -> Any:
        with torch.inference_mode():
            for _ in range(4):
                (a @ a).relu().softmax(1)
                (x.sigmoid() * x + x.mean(1, keepdim=True)).amax(0)

    return work


def _ready(
    one: Pass,
    settings: Settings,
    seconds: float,
    clocks: cuda.Clocks | None,
    cold: bool = False,
) -> list[float]:
    with one.ready() as step:
        return samples(step, settings, seconds, clocks, cold)


def _latency(found: list[float]) -> Latency:
    fifths = statistics.quantiles(found, n=5)
    return Latency(statistics.median(found), fifths[0], fifths[3], len(found))
