"""What this machine can do at best, and which of its limits a row stands under.

Three times bound a pass from below: its least bytes at the rate the memory moves them, its
multiply-adds at the rate of a large matrix product, its operator calls at the cost of an empty one.
The longest rules. The memory's rate depends on how much is moved: what fits a cache moves at the
cache's rate. So copies of many sizes are timed, and a row is held to the best rate seen at its own
size or above. A row that beats its roof shows that the roof was measured too low, and raises it.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import cuda
from .passes import Pass
from .row import Roof
from .settings import Settings
from .timing import cpu_timer

FOOTPRINTS = tuple(2**k for k in (15, 18, 20, 22, 24, 26, 28))  # bytes read and written by a copy
SIDES = (256, 512, 1024, 2048, 4096, 8192)  # of the square matrices
SECONDS = 0.03  # for one measurement
SHORT = 1e-4  # for one of its samples
BACKWARD = 2  # products of the backward pass for each of the forward pass, one for each factor


class Work(NamedTuple):
    """What a pass over the whole batch has to do, and the seconds it takes."""

    bytes: int
    macs: int
    calls: int
    seconds: float


class Verdict(NamedTuple):
    """A row's roofs, and for each pass which rules and the fraction reached."""

    bandwidth: float
    macs: float
    launch_us: float
    roofs: list[Roof]
    fractions: list[float | None]


def verdict(works: list[Work], settings: Settings) -> Verdict:
    """Hold passes of one row to the roofs of this machine."""
    threads = torch.get_num_threads()
    rates = _copies(settings.device, threads)
    least = min(work.bytes for work in works)
    measured = max(
        rate for size, rate in rates.items() if size >= max(_not_above(least), FOOTPRINTS[0])
    )
    bandwidth = max(measured, *(work.bytes / work.seconds for work in works))
    product = _products(settings.device, settings.computed, threads)
    macs = max(product, *(work.macs / work.seconds for work in works))
    launch = _launch(settings.device, threads)
    roofs: list[Roof] = []
    fractions: list[float | None] = []
    for work in works:
        bounds: dict[Roof, float] = {
            "bandwidth": work.bytes / bandwidth,
            "compute": work.macs / macs,
            "launch": work.calls * launch,
        }
        roof = max(bounds, key=lambda key: bounds[key])
        roofs.append(roof)
        fractions.append(None if roof == "launch" else bounds[roof] / work.seconds)
    return Verdict(bandwidth, macs, launch * 1e6, roofs, fractions)


def calls(one: Pass, settings: Settings) -> int:
    """Operators that a pass calls; a compiled block or a graph is one call."""
    if settings.mode != "eager":
        return 1
    counter = _Counter()  # type: ignore[no-untyped-call]
    with one.ready() as step, counter:
        step()
    return counter.calls


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    calls = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def _not_above(size: int) -> int:
    return max((f for f in FOOTPRINTS if f <= size), default=FOOTPRINTS[0])


@functools.cache
def _copies(device: str, threads: int) -> Mapping[int, float]:
    """Bytes per second of a copy, by the bytes that it reads and writes."""
    source = torch.ones(FOOTPRINTS[-1] // 2, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    rates = {}
    for size in FOOTPRINTS:
        copy = functools.partial(target[: size // 2].copy_, source[: size // 2])
        rates[size] = size / _best(copy, device)
    return rates


@functools.cache
def _products(device: str, dtype: torch.dtype, threads: int) -> float:
    """Multiply-adds per second of the best square matrix product, up to where one takes long."""
    best = 0.0
    for side in SIDES:
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = _best(functools.partial(torch.mm, a, a), device)
        best = max(best, side**3 / seconds)
        if seconds > SECONDS / 4:
            break
    return best


@functools.cache
def _launch(device: str, threads: int) -> float:
    """Seconds of one operator call on a single number."""
    one = torch.ones(1, device=device)
    return _best(lambda: one + 1, device)


def _best(step: Callable[[], Any], device: str) -> float:
    """Seconds of the fastest of many short samples: a neighbor's turn outlasts each of them."""
    with torch.inference_mode():
        if torch.device(device).type == "cuda":
            return min(cuda.samples(step, device, SECONDS)) / 1e3
        timer = cpu_timer(step)
        calls = max(1, round(SHORT / timer.timeit(1).median))
        end, best = time.perf_counter() + SECONDS, math.inf
        while time.perf_counter() < end:
            best = min(best, timer.timeit(calls).median)
        return best
