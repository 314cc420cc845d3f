"""The roofline of this machine, and the fraction of a row's time that it explains.

The time of a pass has three lower bounds: the bytes it must move at the memory's bandwidth, its
multiply-adds at the rate of a large matrix product, and its operator calls at the cost of a call on
a single number. Bandwidth depends on the amount of data, because of the caches: copies of several
sizes are timed, and a row's bandwidth is the best one at its own size or above. A row that exceeds
a measured rate shows that it was measured too low, and raises it.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..job import Settings
from . import clock, cuda, sample

FOOTPRINTS = tuple(2**k for k in (15, 18, 20, 22, 24, 26, 28))  # bytes read and written by a copy
LARGE_FOOTPRINTS = (2**30, 2**32)  # on CUDA, for its sustained bandwidth
SIDES = (256, 512, 1024, 2048, 4096, 8192)  # of the square matrices
SECONDS = 0.03  # for one measurement


class Work(NamedTuple):
    """What a pass over the whole batch has to do, and the seconds it takes."""

    bytes: int
    macs: int
    calls: int
    seconds: float


def bounds(works: Mapping[str, Work], settings: Settings) -> dict[str, Any]:
    """A row's fields: the machine's rates, and each pass's highest bound and its fraction."""
    threads = torch.get_num_threads()
    launch = _launch(settings.device, settings.mode, threads)
    rates = _copies(settings.device, threads)
    size = min(work.bytes for work in works.values())
    nearest = max((f for f in rates if f <= size), default=min(rates))
    bandwidth = max(rate for f, rate in rates.items() if f >= nearest)
    macs = _products(settings.device, settings.computed, threads)
    for work in works.values():
        bandwidth = max(bandwidth, work.bytes / work.seconds)
        macs = max(macs, work.macs / work.seconds)
        launch = min(launch, work.seconds / max(work.calls, 1))
    fields: dict[str, Any] = {"roof_bandwidth": bandwidth, "roof_macs": macs}
    fields["roof_launch_us"] = 1e6 * launch
    for name, work in works.items():
        seconds = {"bandwidth": work.bytes / bandwidth, "compute": work.macs / macs}
        seconds["launch"] = work.calls * launch
        roof = max(seconds, key=seconds.__getitem__)
        fraction = min(1.0, seconds[roof] / work.seconds)
        fields |= {f"roof_{name}": roof, f"roof_{name}_fraction": fraction}
    return fields


@functools.cache
def _copies(device: str, threads: int) -> Mapping[int, float]:
    """Bytes per second of a copy, by the bytes that it reads and writes."""
    sizes = FOOTPRINTS + (LARGE_FOOTPRINTS if torch.device(device).type == "cuda" else ())
    source = torch.ones(sizes[-1] // 2, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return {
        size: size / best(functools.partial(target[: size // 2].copy_, source[: size // 2]), device)
        for size in sizes
    }


@functools.cache
def _products(device: str, dtype: torch.dtype, threads: int) -> float:
    """Multiply-adds per second of the best matrix product; stops at one that takes long."""
    most = 0.0
    for side in SIDES:
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = best(functools.partial(torch.mm, a, a), device)
        most = max(most, side**3 / seconds)
        if seconds > SECONDS / 4:
            break
    return most


@functools.cache
def _launch(device: str, mode: str, threads: int) -> float:
    """Seconds of a call on a single number: of an operator, a compiled function or a graph."""
    one = torch.ones(1, device=device)

    def step() -> Any:
        return one + 1

    if mode == "compiled":
        return best(torch.compile(step), device)
    return best(cuda.captured(step, device) if mode == "cudagraph" else step, device)


def best(step: sample.Step, device: str) -> float:
    """The minimum seconds of a step, sampled as a row's passes are."""
    with torch.inference_mode():
        if torch.device(device).type == "cuda":
            return cuda.latency(step, device, SECONDS, "device").best / 1e3
        return clock.latency(step, SECONDS).best / 1e3
