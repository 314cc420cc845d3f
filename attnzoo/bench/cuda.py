"""Everything that only a CUDA device does: events, a flushed cache, graphs, clocks, memory."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

SAMPLE_MS = 0.2  # events tick in about a microsecond: shorter calls share a pair of them
REASONS = {  # of NVML's nvmlClocksEventReasons that hold a working clock back
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


def samples(
    step: Callable[[], Any],
    device: str,
    seconds: float,
    clocks: "Clocks | None" = None,
    cold: bool = False,
) -> list[float]:
    """Milliseconds of one call, sample by sample, for about as long as asked for.

    The calls are queued without a wait in between. Warm: each sample is as many calls in a row as
    fill `SAMPLE_MS`. Cold: one call, behind a write over twice the L2 cache that is not timed.
    """
    with torch.cuda.device(device):
        flush = _flusher(device) if cold else None
        once = max(_queued(step, 1, 3, flush, None))
        calls = 1 if cold else max(1, round(SAMPLE_MS / max(once, 1e-3)))
        found: list[float] = []
        end = time.perf_counter() + seconds
        while not found or time.perf_counter() < end:
            found += _queued(step, calls, 5, flush, clocks)
        return found


def _queued(
    step: Callable[[], Any],
    calls: int,
    count: int,
    flush: Callable[[], Any] | None,
    clocks: "Clocks | None",
) -> list[float]:
    pairs = [(_event(), _event()) for _ in range(count)]
    for start, end in pairs:
        if flush is not None:
            flush()
        start.record()
        for _ in range(calls):
            step()
        end.record()
    if clocks is not None:
        clocks.note()  # while the queue is still being worked off
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / calls for start, end in pairs]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _flusher(device: str) -> Callable[[], Any]:
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return torch.empty(2 * cache, dtype=torch.int8, device=device).zero_


def captured(step: Callable[[], Any], device: str) -> Callable[[], Any]:
    """`step` as the replay of one CUDA graph; it gives the same tensors, filled anew."""
    with torch.cuda.device(device):
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up in the first calls
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


@contextlib.contextmanager
def ieee() -> Iterator[None]:
    """Within it float32 convolutions are float32: cuDNN's default rounds their inputs to TF32."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def peak_bytes(step: Callable[[], Any], device: str) -> int:
    """Most bytes that a step holds above what was there before it."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class Clocks:
    """SM clock and throttle reasons as NVML tells them, noted while the device works.

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

    def note(self) -> None:
        """Read both now."""
        if self._nvml is not None:
            sm = self._nvml.NVML_CLOCK_SM
            self._clocks.append(self._nvml.nvmlDeviceGetClockInfo(self._handle, sm))
            self._reasons |= self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)

    @property
    def mhz(self) -> float | None:
        """The median of what was noted."""
        return statistics.median(self._clocks) if self._clocks else None

    @property
    def throttle(self) -> str | None:
        """All reasons that were noted, or `none`."""
        if not self._clocks:
            return None
        return ", ".join(word for bit, word in REASONS.items() if self._reasons & bit) or "none"
