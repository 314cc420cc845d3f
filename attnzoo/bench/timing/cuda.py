"""The latency of a step on a CUDA device, by events behind a blocked stream; graphs, memory."""

import contextlib
import functools
import math
import time
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from ..._torch import cuda_spin
from ..row import Latency
from . import clock
from .clock import Round
from .sample import Step, uncollected

Kind = Literal["wall", "device", "cold"]
SAMPLE_SECONDS = {"wall": 1e-3, "device": 2e-4, "cold": 0.0}  # events have a resolution of 1 us
MOST_CALLS = {"wall": 10**6, "device": 16, "cold": 1}  # a queue holds about a thousand kernels
LEAST_SAMPLES = 3  # in a round
WARM_SECONDS = 0.1  # of calls before the first sample, for clock rates and caches
CYCLES_PER_SECOND = 2e9  # of the device's clock, at most
BLOCKS = (1e-3, 4e-3, 16e-3, 64e-3)  # seconds to block the stream, until all calls are queued
THROTTLED = {  # the bits of NVML's nvmlClocksEventReasons that limit a working clock
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def latency(
    step: Step, device: str, seconds: float, kind: Kind, throttle: "Throttle | None" = None
) -> Latency:
    """The latency of a step on the device; samples during which it throttles are discarded.

    `wall`: a few calls and the wait for their end, as a program sees it. `device`: the same calls
    queued behind a blocked stream, so that the first event is reached when all are queued. `cold`:
    the same for single calls, each after a write to twice the L2 cache.
    """
    with torch.cuda.device(device):
        fits = math.floor(SAMPLE_SECONDS[kind] / _warm(step))
        calls = max(1, min(fits, MOST_CALLS[kind]))
        flush = _flusher(device) if kind == "cold" else None

        def take() -> Round:
            kept: list[float] = []
            discarded: list[float] = []
            while len(kept) < LEAST_SAMPLES or calls * sum(kept) < seconds / clock.ROUNDS:
                with uncollected():
                    wall = kind == "wall"
                    found = _walled(step, calls) if wall else _blocked(step, calls, flush)
                throttled = throttle is not None and throttle.active(step)
                (discarded if throttled else kept).append(found)
                if len(discarded) > clock.MAX_OVERTIME * max(len(kept), LEAST_SAMPLES):
                    break  # it throttles all the time, which the row reports
            spent = calls * (sum(kept) + sum(discarded))
            return Round(kept or discarded, spent, len(discarded), bool(kept))

        return clock.rounds(take, seconds)


def _warm(step: Step) -> float:
    """Call it for a while; seconds of one call."""
    found, end = math.inf, time.perf_counter() + WARM_SECONDS
    while time.perf_counter() < end:
        found = min(found, _walled(step, 1))
    return max(found, 1e-7)


def _walled(step: Step, calls: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def _blocked(step: Step, calls: int, flush: Step | None) -> float:
    """Seconds of one call between two events, which the stream reaches when all is queued."""
    for seconds in BLOCKS:
        start, end = _event(), _event()
        torch.cuda.synchronize()
        cuda_spin(int(seconds * CYCLES_PER_SECOND))
        if flush is not None:
            flush()
        start.record()
        for _ in range(calls):
            step()
        end.record()
        early = start.query()  # the stream has reached it before the host was done
        torch.cuda.synchronize()
        if not early:
            break
    return float(start.elapsed_time(end)) / 1e3 / calls


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _flusher(device: str) -> Step:
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    if cache < 1:
        raise ValueError(f"cold=True needs the size of the L2 cache, which {device} gives as 0")
    return torch.empty(2 * cache, dtype=torch.int8, device=device).zero_


def captured(step: Step, device: str) -> Step:
    """`step` as the replay of a CUDA graph, which returns the same tensors, filled anew."""
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(3):  # libraries initialize themselves in the first calls
                step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with uncollected(), torch.cuda.graph(graph):
            results = step()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


def ieee() -> AbstractContextManager[None]:
    """A context in which convolutions of float32 do not round their inputs to TF32."""
    benchmark = torch.backends.cudnn.benchmark
    return torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=False)


def peak_bytes(step: Step, device: str) -> int:
    """The most bytes that a step holds above those before it."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class Throttle:
    """What limits the device's clock rate, by NVML; nothing if NVML does not know the device."""

    def __init__(self, device: str) -> None:
        self.reasons: str | None = None  # all that were found, `none`, or None if not known
        self._found = 0
        with contextlib.suppress(Exception):  # not installed, or a part of a device
            import pynvml

            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(device).uuid
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            reasons: Any = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons
            self._read = functools.partial(reasons, handle)
            self._read()
            self.reasons = "none"

    def active(self, step: Step) -> bool:
        """Whether the clock rate is limited while the device works on a step."""
        if self.reasons is None:
            return False
        step()
        now = self._read()
        self._found |= now
        names = [name for bit, name in THROTTLED.items() if self._found & bit]
        self.reasons = ", ".join(names) or "none"
        return any(now & bit for bit in THROTTLED)
