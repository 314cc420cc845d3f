"""Latencies and roofs, with a stand-in for the device where there is none."""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnzoo.bench import cuda, roofline, timing
from attnzoo.bench.passes import Pass, Passes
from attnzoo.bench.roofline import Work
from attnzoo.bench.settings import Settings

QUICK = Settings(min_time=0.05)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A second one waits for a core of a busy machine at every operator."""
    torch.set_num_threads(1)


class Spin(nn.Module):
    """Keeps the processor busy for a while."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns

    def forward(self) -> int:
        return sum(range(self.turns))


def passes(block: nn.Module) -> Passes:
    return Passes(*(Pass(block, train, block) for train in (False, True, True)))


def test_more_work_takes_longer() -> None:
    """Twenty times the work, in turns: the shortest of each, which no neighbor inflates."""
    little, much = passes(Spin(1_000)), passes(Spin(20_000))
    beat = timing.Pulse(QUICK)
    a, b = [], []
    for _ in range(5):
        a.append(min(timing.samples(little.forward.step, QUICK, 0.005, beat)))
        b.append(min(timing.samples(much.forward.step, QUICK, 0.005, beat)))
    assert 5 < min(b) / min(a) < 80


def test_every_round_samples_every_pass_and_the_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    names = {False: "forward", True: "train"}

    def samples(step: Any, settings: Any, share: float, beat: timing.Pulse, *rest: Any) -> Any:
        order.append(names[step.training])
        beat.waiting.append((float(len(order)), False))
        return [float(len(order))]

    def pulse(beat: timing.Pulse) -> timing.Beat:
        order.append("pulse")
        return timing.Beat(0.5, 0.5)

    monkeypatch.setattr(timing, "samples", samples)
    monkeypatch.setattr(timing.Pulse, "_time", pulse)
    found = timing.times(passes(Spin(1)), QUICK)
    turn = ["forward", "pulse", "train", "pulse", "train", "pulse"]
    assert order == ["pulse", *timing.ROUNDS * turn]
    assert found["latency_forward"].median == statistics.median(range(2, len(order), 6))
    assert found["latency_forward"].pulse_us == 500
    assert found["latency_forward_cold"] is None


def test_samples_are_held_to_the_pulses_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine gets four times as slow: a sample takes three pulses before and after."""
    pulses = iter([1.0, 1.0, *8 * [4.0]])
    monkeypatch.setattr(timing.Pulse, "_time", lambda beat: timing.Beat(*2 * [next(pulses)]))
    monkeypatch.setattr(timing, "waits", lambda: 0)
    beat = timing.Pulse(QUICK)
    for ms in (3, 6, 12):
        beat.between(10, 10 * ms / 1e3)
    found = beat.ratios()
    assert [one.wall for one in found] == pytest.approx([3, 3, 3])
    assert [one.calm for one in found] == pytest.approx([3, 3, 3])
    assert beat.ratios() == []


@pytest.mark.parametrize(("calm", "pulses"), [(2, 9.0), (3, 5.0)])
def test_samples_that_waited_for_a_processor_are_a_last_resort(calm: int, pulses: float) -> None:
    waited, ran = timing.Ratio(9.0, None), timing.Ratio(9.0, 5.0)
    latency = timing._latency([18.0] * 7, [waited] * (7 - calm) + [ran] * calm)
    assert latency.median / latency.pulse_us * 1e3 == pytest.approx(pulses)


def test_a_wait_for_a_processor_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([0, 0, 0, 1, 1, 1, 1])  # by the system: before, and twice per sample
    monkeypatch.setattr(timing, "waits", lambda: next(counted))
    beat = timing.Pulse(QUICK)
    for _ in range(3):
        beat.between(1, 1e-4)
    assert [disturbed for _, disturbed in beat.waiting] == [False, True, False]


def test_pulses_come_in_between_the_samples_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(timing.Pulse, "take", lambda beat: taken.append(len(beat.waiting)))
    beat = timing.Pulse(QUICK)
    found = timing.samples(passes(Spin(1_000)).forward.step, QUICK, 0.05, beat)
    assert [ms for ms, _ in beat.waiting] == pytest.approx(found)
    assert len(set(taken)) >= 3


def test_the_pulse_does_the_same_work_every_time() -> None:
    for once, again in zip(timing.pulse("cpu")(), timing.pulse("cpu")(), strict=True):
        assert torch.equal(once, again)


class FakeCuda:
    """A device with a clock of its own: a queue that works off kernels one after the other."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def work(self, name: str, ms: float) -> None:
        self.calls.append(name)
        self.now += ms

    def event(self) -> SimpleNamespace:
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda end: end.at - event.at
        return event


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "_event", fake.event)
    monkeypatch.setattr(cuda, "_flusher", lambda device: lambda: fake.work("flush", 3.0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: fake.calls.append("wait"))
    return fake


def test_warm_samples_are_many_calls_in_a_row(device: FakeCuda) -> None:
    found = cuda.samples(lambda: device.work("step", 0.01), "cuda", 0.0)
    assert found == pytest.approx([0.01] * 5)
    assert "flush" not in device.calls
    assert device.calls.count("step") == 3 + 5 * round(cuda.SAMPLE_MS / 0.01)


def test_cold_samples_are_one_call_behind_a_flush_that_is_not_timed(device: FakeCuda) -> None:
    found = cuda.samples(lambda: device.work("step", 0.01), "cuda", 0.0, cold=True)
    assert found == pytest.approx([0.01] * 5)
    assert device.calls == 3 * ["flush", "step"] + ["wait"] + 5 * ["flush", "step"] + ["wait"]


def test_the_flush_writes_over_twice_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    sized = SimpleNamespace(L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: sized)
    flush = cuda._flusher("cpu")
    assert flush.__self__.nbytes == 2000  # type: ignore[attr-defined]


def test_clocks_are_noted_while_the_queue_works(
    device: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([1980, 1500, 1600])

    class NVMLError(Exception):
        pass

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetClockInfo=lambda handle, kind: next(readings),
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x1 | 0x4 | 0x20,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    sized = SimpleNamespace(uuid="abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: sized)
    clocks = cuda.Clocks("cuda")
    assert (clocks.mhz, clocks.throttle) == (None, None)
    for _ in range(3):
        cuda.samples(lambda: device.work("step", 1.0), "cuda", 0.0, clocks)
    assert (clocks.mhz, clocks.throttle) == (1600, "power cap, thermal slowdown")

    def unknown(*args: Any) -> None:
        raise NVMLError

    for call in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetHandleByUUID"):
        setattr(nvml, call, unknown)
        part = cuda.Clocks("cuda")
        part.note()
        assert (part.mhz, part.throttle) == (None, None)


def test_without_nvml_there_is_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    clocks = cuda.Clocks("cuda")
    clocks.note()
    assert (clocks.mhz, clocks.throttle) == (None, None)


def test_a_replayed_graph_gives_the_captured_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(wait_stream=lambda other: None)
    replays: list[int] = []
    graph = SimpleNamespace(replay=lambda: replays.append(1))
    for name, stand_in in (
        ("device", lambda device: nullcontext()),
        ("Stream", lambda: stream),
        ("current_stream", lambda: stream),
        ("stream", lambda stream: nullcontext()),
        ("CUDAGraph", lambda: graph),
        ("graph", lambda graph: nullcontext()),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    made: list[Tensor] = []

    def step() -> Tensor:
        made.append(torch.ones(1))
        return made[-1]

    replay = cuda.captured(step, "cuda")
    assert len(made) == 4  # three to warm up, one captured
    assert replay() is replay() is made[-1]
    assert len(replays) == 2
    assert len(made) == 4


def test_peak_memory_is_above_what_was_there(
    device: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {"now": 100, "most": 900}
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held["most"])
    reset = lambda device: held.update(most=held["now"])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    assert cuda.peak_bytes(lambda: held.update(most=350), "cuda") == 250


def test_tf32_is_off_for_a_row_and_as_before_after_it() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    with cuda.ieee():
        assert not cudnn.allow_tf32
    assert cudnn.allow_tf32 == before


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small copies at 100 GB/s, large ones at 10; 1e12 MAC/s; a microsecond an operator."""
    rates = {2**15: 90e9, 2**20: 100e9, 2**28: 10e9}
    monkeypatch.setattr(roofline, "_copies", lambda device, threads: rates)
    monkeypatch.setattr(roofline, "_products", lambda device, dtype, threads: 1e12)
    monkeypatch.setattr(roofline, "_launch", lambda device, threads: 1e-6)
    return iter(())


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("work", "roof", "fraction"),
    [
        (Work(bytes=10**9, macs=10**9, calls=10, seconds=0.2), "bandwidth", 0.5),
        (Work(bytes=10**7, macs=10**10, calls=10, seconds=0.04), "compute", 0.25),
        (Work(bytes=10**4, macs=10**5, calls=10, seconds=1e-4), "launch", None),
        (Work(bytes=10**5, macs=10, calls=0, seconds=1e-5), "bandwidth", 0.1),  # from a cache
    ],
)
def test_the_longest_bound_rules(work: Work, roof: str, fraction: float | None) -> None:
    fields = roofline.verdict({"forward": work}, Settings())
    assert fields["roof_forward"] == roof
    assert fields["roof_forward_fraction"] == (fraction and pytest.approx(fraction))
    assert fields["roof_launch_us"] == 1


@pytest.mark.usefixtures("machine")
def test_a_row_that_beats_its_roof_raises_it() -> None:
    fast = Work(bytes=10**9, macs=1, calls=1, seconds=0.05)
    fields = roofline.verdict({"forward": fast}, Settings())
    assert fields["roof_forward_fraction"] == 1
    assert fields["roof_bandwidth"] == 2e10


def test_this_machine_has_roofs() -> None:
    rates = roofline._copies("cpu", 1)
    assert list(rates) == list(roofline.FOOTPRINTS)
    assert all(1e8 < rate < 1e13 for rate in rates.values())
    assert 1e8 < roofline._products("cpu", torch.float32, 1) < 1e15
    assert 1e-8 < roofline._launch("cpu", 1) < 1e-3
    start = time.perf_counter()
    roofline._copies("cpu", 1)
    assert time.perf_counter() - start < 0.01  # once a run


def test_operators_are_counted_forward_and_backward() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin().cos()

    block = Twice()
    x = torch.randn(3, requires_grad=True)
    forward = Pass(block, False, lambda: block(x))
    training = Pass(block, True, lambda: torch.autograd.grad(block(x).sum(), x))
    assert roofline.calls(forward, Settings()) == 2
    assert roofline.calls(training, Settings()) > 6
    assert roofline.calls(training, Settings(mode="compiled")) == 1
