"""The clock and the roofs; a CUDA device has a stand-in."""

import gc
import math
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from attnzoo.bench.job import Settings
from attnzoo.bench.passes import Pass, Passes
from attnzoo.bench.timing import clock, cuda, roofline, sample
from attnzoo.bench.timing.clock import Round
from attnzoo.bench.timing.roofline import Work
from attnzoo.bench.timing.sample import Sample
from attnzoo.cost.counter import WorkCounter


def spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def rounds_of(*least: float, calm: bool = True) -> list[Round]:
    return [Round([2 * s, s], 1.0, 0, calm) for s in least]


def test_a_sample_is_short_and_in_the_time_of_its_thread() -> None:
    assert sample.calls_per_sample(lambda: spin(1e-4)) in (4, 5)
    assert sample.calls_per_sample(lambda: spin(2e-3)) == 1
    found = sample.burst(lambda: spin(1e-4), 3, 0.0, 20)
    assert len(found) == 20
    assert 1e-4 <= min(one.processor for one in found) < 1.5e-4


def test_a_processor_taken_away_does_not_count_and_a_sleep_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = [Sample(wall=9.0, processor=1.0, preempted=True, waited=False)] * 3
    assert sample.times(taken) == [1.0, 1.0, 1.0]
    slept = [Sample(9.0, 1.0, False, True)] * 2 + [Sample(20.0, 1.0, True, True)]
    assert sample.times(slept) == [9.0, 9.0]
    (one,) = sample.burst(lambda: time.sleep(0.003), 1, 0.0)
    assert one.waited
    assert sample.times([one])[0] >= 0.003


def test_nothing_is_collected_within_a_burst() -> None:
    seen: list[bool] = []
    sample.burst(lambda: seen.append(gc.isenabled()), 1, 0.0, 3)
    assert not any(seen)
    assert gc.isenabled()


def test_the_parts_of_a_latency() -> None:
    found = clock.summary([s / 1e3 for s in range(101)][1:], 7, True)
    assert found == clock.Latency(1.0, 20.8, 50.5, 80.2, 100, 7, True)
    assert clock.summary([0.002], 0, False).p80 == 2.0


def test_rounds_go_on_until_two_reach_the_same_least_time() -> None:
    assert clock.settled(rounds_of(1.02, 5.0, 1.0))
    assert not clock.settled(rounds_of(1.05, 5.0, 1.0))
    assert not clock.settled(rounds_of(1.0))
    assert not clock.settled(rounds_of(1.0, 1.0, calm=False))
    least = iter([3.0, 2.0, 1.9, 1.0, 1.5, 1.01, 7.0])
    found = clock.rounds(lambda: Round([next(least)], 1.0, 1, True), 1.0)
    assert (found.best, found.samples, found.disturbed, found.settled) == (1e3, 6, 6, True)


def test_rounds_end_with_the_overtime(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(clock.time, "perf_counter", lambda: float(next(now)))
    falling = iter([2.0**-n for n in range(50)])
    found = clock.rounds(lambda: Round([next(falling)], 1.0, 0, True), 2.0)
    assert not found.settled
    assert found.samples == clock.MAX_OVERTIME * 2


def test_a_slow_machine_is_not_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    load = clock.ReferenceLoad()
    times = iter([1.0, 1.05, 1.3, 0.9, 1.0])
    load.least = 1.0
    monkeypatch.setattr(load, "time", lambda: next(times))
    assert [load.calm() for _ in range(5)] == [True, True, False, True, False]


def test_the_highest_bound_and_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_copies", lambda *_: {100: 1000.0, 10_000: 500.0})
    monkeypatch.setattr(roofline, "_products", lambda *_: 100.0)
    monkeypatch.setattr(roofline, "_launch", lambda *_: 0.01)
    works = {"forward": Work(5000, 100, 10, 20.0), "training": Work(10_000, 1000, 10, 20.0)}
    found = roofline.bounds(works, Settings())
    assert (found["roof_forward"], found["roof_forward_fraction"]) == ("bandwidth", 0.25)
    assert (found["roof_training"], found["roof_training_fraction"]) == ("bandwidth", 0.5)
    launched = roofline.bounds({"forward": Work(1, 1, 1000, 20.0)}, Settings())
    assert (launched["roof_forward"], launched["roof_forward_fraction"]) == ("launch", 0.5)
    faster = roofline.bounds({"forward": Work(5000, 10**5, 1, 1.0)}, Settings())
    assert (faster["roof_macs"], faster["roof_forward_fraction"]) == (1e5, 1.0)


def test_operators_are_counted_and_views_are_none() -> None:
    x = torch.ones(3)
    one = Pass(torch.nn.Identity(), False, lambda: (x[:1] + 1) * 2)
    with one.ready() as step, WorkCounter() as found:
        step()
    assert found.calls == 2


class FakeCuda:
    """A device with a clock of its own: it works off a queue behind a host that takes time too."""

    def __init__(self) -> None:
        self.host = self.device = 0.0  # seconds
        self.calls: list[str] = []
        self.blocked: list[float] = []

    def launch(self, name: str, seconds: float, host: float) -> None:
        self.calls.append(name)
        self.host += host
        self.device = max(self.device, self.host) + seconds

    def spin(self, cycles: int) -> None:
        self.blocked.append(cycles / cuda.CYCLES_PER_SECOND)
        self.launch("block", cycles / cuda.CYCLES_PER_SECOND, 0.0)

    def wait(self, device: object = None) -> None:
        self.host = max(self.host, self.device)

    def event(self) -> SimpleNamespace:
        event = SimpleNamespace(at=0.0)
        event.record = lambda: setattr(event, "at", max(self.device, self.host))
        event.query = lambda: self.host >= event.at
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda, "_event", fake.event)
    monkeypatch.setattr(cuda, "cuda_spin", fake.spin)
    monkeypatch.setattr(cuda, "_flusher", lambda _: lambda: fake.launch("flush", 3e-3, 1e-5))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", fake.wait)
    monkeypatch.setattr(cuda.time, "perf_counter", lambda: fake.host)
    return fake


def launched(device: FakeCuda) -> Any:
    return lambda: device.launch("step", 1e-4, 2e-3)  # twenty times as long on the host


@pytest.mark.parametrize("kind", ["device", "cold"])
def test_the_device_is_timed_behind_a_blocked_stream(device: FakeCuda, kind: cuda.Kind) -> None:
    found = cuda.latency(launched(device), "cuda", 1e-3, kind)
    assert found.best == pytest.approx(0.1)
    if kind == "device":
        assert max(device.blocked) > 2e-3  # grown past what the host takes
    assert ("flush" in device.calls) == (kind == "cold")


def test_wall_time_is_what_the_host_takes(device: FakeCuda) -> None:
    found = cuda.latency(launched(device), "cuda", 1e-3, "wall")
    assert found.best == pytest.approx(2.1)
    assert not device.blocked
    assert device.calls.count("step") >= cuda.WARM_SECONDS / 2.1e-3  # warm by time


def test_throttled_samples_are_thrown_away(device: FakeCuda) -> None:
    readings = iter([True, False] * 100)
    clocks = SimpleNamespace(active=lambda step: next(readings))
    found = cuda.latency(launched(device), "cuda", 1e-3, "wall", clocks)  # type: ignore[arg-type]
    assert found.disturbed == found.samples
    always = SimpleNamespace(active=lambda step: True)
    found = cuda.latency(launched(device), "cuda", 1e-3, "wall", always)  # type: ignore[arg-type]
    assert not found.settled
    assert found.samples == found.disturbed


def test_a_cache_of_unknown_size_is_not_flushed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = SimpleNamespace(L2_cache_size=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: sizes)
    with pytest.raises(ValueError, match="L2 cache, which cpu gives as 0"):
        cuda._flusher("cpu")
    sizes.L2_cache_size = 1000
    assert cuda._flusher("cpu").__self__.nbytes == 2000  # type: ignore[attr-defined]


def test_what_throttles_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = iter([0x1, 0x1, 0x4 | 0x20])
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: next(reasons),
    )
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    named = SimpleNamespace(uuid="abc")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: named)
    steps: list[int] = []
    throttle = cuda.Throttle("cuda")
    assert not throttle.active(lambda: steps.append(1))
    assert throttle.reasons == "none"
    assert throttle.active(lambda: steps.append(1))
    assert throttle.reasons == "power cap, thermal slowdown"
    assert len(steps) == 2  # the device works while it is asked


def test_without_nvml_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    throttle = cuda.Throttle("cuda")
    assert not throttle.active(lambda: None)
    assert throttle.reasons is None


def test_every_pass_has_its_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnzoo.bench import run

    block = torch.nn.Identity()
    steps = {False: 1e-4, True: 3e-4}
    passes = Passes(*(Pass(block, t, lambda s=steps[t]: spin(s)) for t in (False, True)))
    found = run.latencies(passes, Settings(min_time=0.005))
    assert found["latency_forward_cold"] is None
    assert found["latency_training"].best > 2 * found["latency_forward"].best
    assert math.isclose(found["latency_forward"].best, 0.1, rel_tol=0.5)
