"""The clock of a CUDA device: events behind a blocked stream, a flushed cache, graphs, memory."""

import contextlib
import math
import statistics
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..._torch import cuda_spin
from ..row import Latency
from . import clock
from .clock import Round
from .sample import Step, uncollected

Kind = Literal["wall", "device", "cold"]
SAMPLE_SECONDS = {"wall": 1e-3, "device": 2e-4, "cold": 0.0}  # events tick in about a microsecond
MOST_CALLS = {"wall": 10**6, "device": 16, "cold": 1}  # a queue holds about a thousand kernels
LEAST_SAMPLES = 3  # in a round
WARM_SECONDS = 0.1  # of calls before the first sample: clocks rise and caches fill by time
CYCLES_PER_SECOND = 2e9  # of the device's clock, at most
BLOCK_TRIES = 5  # to block the stream until all calls are queued, each twice as long
THROTTLED = {  # of NVML's nvmlClocksEventReasons, those that hold a working clock back
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def latency(
    step: Step, device: str, seconds: float, kind: Kind, clocks: "Clocks | None" = None
) -> Latency:
    """What a pass costs on the device; samples taken while it throttles are thrown away.

    `wall`: calls in a row and the wait for their end, what a program sees. `device`: the same
    calls queued behind a blocked stream, so that the host's part is over before the first event.
    `cold`: single calls, each behind a write over twice the L2 cache too.
    """
    with torch.cuda.device(device):
        fits = math.floor(SAMPLE_SECONDS[kind] / _warm(step))
        calls = max(1, min(fits, MOST_CALLS[kind]))
        blocked = _BlockedStream(_flusher(device) if kind == "cold" else None)

        def take() -> Round:
            kept: list[float] = []
            thrown: list[float] = []
            while len(kept) < LEAST_SAMPLES or calls * sum(kept) < seconds / clock.ROUNDS:
                with uncollected():
                    timed = _walled if kind == "wall" else blocked.timed
                    found = timed(step, calls)
                if clocks is not None:
                    step()  # so that the device works while its clock is read
                throttled = clocks is not None and clocks.note()
                (thrown if throttled else kept).append(found)
                if len(thrown) > clock.MAX_OVERTIME * max(len(kept), LEAST_SAMPLES):
                    break  # it throttles throughout: the row says so
            spent = calls * (sum(kept) + sum(thrown))
            return Round(kept or thrown, spent, len(thrown), bool(kept))

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


@dataclass
class _BlockedStream:
    """Keeps the stream busy until everything that is timed has been queued."""

    flush: Step | None
    seconds: float = 1e-3

    def timed(self, step: Step, calls: int) -> float:
        """Seconds of one call between two events that the device reaches after the queueing."""
        for _ in range(BLOCK_TRIES):
            start, end = _event(), _event()
            torch.cuda.synchronize()
            cuda_spin(int(self.seconds * CYCLES_PER_SECOND))
            if self.flush is not None:
                self.flush()
            start.record()
            for _ in range(calls):
                step()
            end.record()
            early = bool(start.query())  # type: ignore[no-untyped-call]  # the device got there before the host was done
            torch.cuda.synchronize()
            if not early:
                break
            self.seconds *= 2
        return float(start.elapsed_time(end)) / 1e3 / calls


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _flusher(device: str) -> Step:
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    if cache < 1:
        raise ValueError(f"cold=True needs the size of the L2 cache, which {device} gives as 0")
    return torch.empty(2 * cache, dtype=torch.int8, device=device).zero_


def captured(step: Step, device: str) -> Step:
    """`step` as the replay of one CUDA graph; it gives the same tensors, filled anew."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up in the first calls
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with uncollected(), torch.cuda.graph(graph):
            results = step()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


def ieee() -> AbstractContextManager[None]:
    """Within it float32 convolutions are float32: cuDNN's default rounds their inputs to TF32."""
    benchmark = torch.backends.cudnn.benchmark
    return torch.backends.cudnn.flags(enabled=True, benchmark=benchmark, allow_tf32=False)


def peak_bytes(step: Step, device: str) -> int:
    """Most bytes that a step holds above what was there before it."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class Clocks:
    """SM clock and throttle reasons as NVML gives them, noted with every sample.

    Both stay None where nvidia-ml-py is not installed or NVML does not know the device (a slice
    of one, say).
    """

    def __init__(self, device: str) -> None:
        self._clocks: list[int] = []
        self._reasons = 0
        self._nvml: Any = None
        with contextlib.suppress(ImportError):
            import pynvml

            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                uuid = torch.cuda.get_device_properties(device).uuid
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
                self._nvml = pynvml

    def note(self) -> bool:
        """Read both now; whether something holds the clock back."""
        if self._nvml is None:
            return False
        with contextlib.suppress(self._nvml.NVMLError):
            reasons = self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
            clock = self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM)
            self._reasons |= reasons
            self._clocks.append(clock)
            return any(reasons & bit for bit in THROTTLED)
        return False

    @property
    def mhz(self) -> float | None:
        """The median of what was noted."""
        return statistics.median(self._clocks) if self._clocks else None

    @property
    def throttle(self) -> str | None:
        """All reasons that were noted, or `none`."""
        if not self._clocks:
            return None
        return ", ".join(word for bit, word in THROTTLED.items() if self._reasons & bit) or "none"
