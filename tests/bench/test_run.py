"""Rows: what they say, what a run survives, and no time for a block that is wrong."""

import json
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo import registry
from attnzoo.bench import run, timing
from attnzoo.bench.row import IDENTITY, LATENCIES, Failure, Latency, Row, from_json
from attnzoo.registry import find

QUICK = run.Settings(size=9, min_time=0.01)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A second one waits for a core of a busy machine at every operator."""
    torch.set_num_threads(1)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that forgets what the test put in."""
    monkeypatch.setattr(registry, "_blocks", dict(registry._catalogue()))


@pytest.fixture(scope="module")
def row() -> Row:
    return attnzoo.measure("se", c=48, reduction=8, size=(5, 6), batch=3, threads=1, min_time=0.01)


def test_measure_gives_one_row(row: Row) -> None:
    assert row.config == {"c": 48, "reduction": 8, "bias": False}
    assert row.shape == {"x": [3, 48, 5, 6]}
    assert row.params == row.macs == row.macs_executed == 2 * 48 * 6
    pixels = 3 * 48 * 5 * 6
    assert row.bytes_forward == 4 * (2 * pixels + row.params)
    assert row.bytes_training == 2 * row.bytes_forward
    assert (row.device, row.dtype, row.mode, row.threads) == ("cpu", "float32", "eager", 1)
    assert not row.autocast
    assert not row.channels_last
    assert 0 < row.checked_error < row.checked_limit
    for key in ("compile_seconds", "memory_peak_bytes", "sm_clock_mhz", "throttle"):
        assert getattr(row, key) is None
    assert row.latency_forward_cold is None
    assert row.latency_training_cold is None


def test_intervals_hold_their_medians(row: Row) -> None:
    for latency in (row.latency_forward, row.latency_train_forward, row.latency_training):
        assert isinstance(latency, Latency)
        assert 0 < latency.p20 <= latency.median <= latency.p80
        assert latency.samples >= timing.LEAST
    assert row.latency_forward.pulse_us > 0


def test_a_row_survives_json(row: Row) -> None:
    data = json.loads(json.dumps(row.to_json()))
    assert from_json(data) == row
    assert from_json(data).identity() == row.identity()
    assert {f"{name}{end}" for name in LATENCIES for end in ("_ms", "_p20_ms", "_p80_ms")} <= set(
        data
    )
    assert data["latency_forward_cold_samples"] is None
    with pytest.raises(ValueError, match="schema=2 must be 1"):
        from_json({**data, "schema": 2})
    with pytest.raises(ValueError, match=r"too much or too few: \{'speed'\}"):
        from_json({**data, "speed": 1})
    del data["macs"]
    with pytest.raises(ValueError, match=r"too much or too few: \{'macs'\}"):
        from_json(data)


def test_a_task_knows_the_identity_of_its_row_and_of_its_failure() -> None:
    good, bad = run.tasks(["se"], QUICK, [{"c": 32}, {"c": 2}])
    done, failed = run.perform(good), run.perform(bad)
    assert isinstance(done, Row)
    assert isinstance(failed, Failure)
    assert good.identity() == done.identity()
    assert bad.identity() == failed.identity() != good.identity()
    written = json.loads(json.dumps(failed.to_json()))
    assert from_json(written) == failed
    assert written["error"].startswith("ValueError: reduction=16")
    assert set(written) == {"error", *IDENTITY}


def test_tasks_take_every_config_and_settings_once() -> None:
    two = [run.Settings(dtype=dtype) for dtype in ("float32", "bfloat16")]
    found = run.tasks(["se", "dtm"], two, [{"c": 32}, {"c": 64}])
    assert [(t.block, t.config.get("c"), t.settings.dtype) for t in found] == [
        ("se", 32, "float32"),
        ("se", 32, "bfloat16"),
        ("se", 64, "float32"),
        ("se", 64, "bfloat16"),
        ("dtm", None, "float32"),
        ("dtm", None, "bfloat16"),
    ]
    assert len({t.identity() for t in found}) == len(found)
    with pytest.raises(attnzoo.UnknownBlockError, match="did you mean"):
        run.tasks(["se", "SENet"], two)


def test_measure_takes_channels_by_position_and_examples_by_default() -> None:
    assert attnzoo.measure("se", 32, min_time=0.01).config["c"] == 32
    assert attnzoo.measure("se", min_time=0.01).config["c"] == find("se").example["c"]


def test_size_means_length_for_sequences() -> None:
    settings = run.Settings(size=5)
    for name in attnzoo.names(layout="sequence"):
        entry = find(name)
        if entry.layouts[0] == "sequence":
            assert settings.input_size(entry).steps == 5
    assert settings.input_size(find("se"))[2:] == (5, 5)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8' must be one of"),
        ({"mode": "fast"}, "mode='fast' must be"),
        ({"mode": "cudagraph"}, "mode='cudagraph' needs a CUDA device"),
        ({"cold": True}, "cold=True needs a CUDA device"),
        ({"autocast": True}, "autocast=True needs dtype='bfloat16' or 'float16', not 'float32'"),
        ({"threads": 0}, "threads=0 must be"),
        ({"min_time": float("nan")}, "min_time=nan must be a positive number"),
        ({"size": 0}, "height=0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused_in_words(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attnzoo.measure("se", **keywords)


def test_threads_hold_for_the_row_alone() -> None:
    assert attnzoo.measure("se", min_time=0.01, threads=2).threads == 2
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_other_dtypes_are_measured(dtype: str) -> None:
    row = attnzoo.measure("se", dtype=dtype, min_time=0.01)
    assert row.dtype == dtype
    if dtype != "float64":
        wide = attnzoo.measure("se", dtype=dtype, autocast=True, min_time=0.01)
        assert wide.autocast
        assert wide.bytes_forward == 2 * row.bytes_forward  # float32 in and out


class Witness(nn.Module):
    """A gate that writes down how it is called."""

    seen: list[dict[str, Any]]

    def __init__(self, c: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(c, 1, 1, 1))
        Witness.seen = []

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta:
            Witness.seen.append(self.state(x))
        return torch.conv2d(x, self.scale, groups=x.shape[1])

    def state(self, x: Tensor) -> dict[str, Any]:
        return {
            "dtype": x.dtype,
            "autocast": torch.is_autocast_enabled("cpu"),
            "channels_last": x.is_contiguous(memory_format=torch.channels_last),
            "train": self.training,
            "inference": torch.is_inference_mode_enabled(),
            "zeros": not x.any(),
            "accumulated": x.grad is not None or self.scale.grad is not None,
            "threads": torch.get_num_threads(),
        }


def seen(**keywords: Any) -> list[dict[str, Any]]:
    attnzoo.register("witness", layout="image", example={"c": 6})(Witness)
    attnzoo.measure("witness", min_time=0.01, **keywords)
    return [call for call in Witness.seen if call["dtype"] != torch.float64]


def values(calls: list[dict[str, Any]], key: str) -> set[Any]:
    return {call[key] for call in calls}


@pytest.mark.usefixtures("shelf")
def test_passes_run_as_they_say() -> None:
    calls = seen(threads=1)
    timed = [c for c in calls if c["inference"] or c["train"]]
    assert len(timed) > 20
    assert all(c["inference"] != c["train"] for c in timed)
    assert values(calls, "threads") == {1}
    for key in ("zeros", "accumulated", "autocast", "channels_last"):
        assert values(timed, key) == {False}


@pytest.mark.usefixtures("shelf")
def test_autocast_holds_for_every_call_and_keeps_float32_inputs() -> None:
    calls = seen(dtype="bfloat16", autocast=True)
    assert values(calls, "dtype") == {torch.float32}
    assert values([c for c in calls if c["inference"] or c["train"]], "autocast") == {True}


@pytest.mark.usefixtures("shelf")
def test_channels_last_reaches_the_block() -> None:
    calls = seen(channels_last=True)
    assert values([c for c in calls if c["inference"] or c["train"]], "channels_last") == {True}


def test_channels_last_is_refused_where_there_is_no_image() -> None:
    task = run.Task(block="mamba", config={"c": 8}, settings=run.Settings(channels_last=True))
    failure = run.perform(task)
    assert isinstance(failure, Failure)
    assert failure.error.startswith(
        "ValueError: channels_last=True needs images (B, C, H, W) alone"
    )
    assert failure.identity() == task.identity()


@pytest.mark.parametrize("error", [ValueError, MemoryError, RuntimeError, KeyError, OSError])
def test_an_error_is_a_row_and_the_run_goes_on(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: nn.Module, x: Tensor) -> Tensor:
        raise error("no room for\nthis block")

    monkeypatch.setattr(find("danet_channel").cls, "forward", fail)
    failed, done = run.table(["danet_channel", "se"], QUICK)
    assert isinstance(failed, Failure)
    assert failed.error.startswith(error.__name__)
    assert failed.known["shape"] == {"x": [2, 64, 9, 9]}
    assert not any(key.endswith(("_ms", "_bytes", "macs")) for key in failed.to_json())
    assert isinstance(done, Row)


def test_an_interrupt_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: nn.Module, x: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(find("se").cls, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        next(run.table(["se"], QUICK))


def test_memory_of_a_failed_block_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[weakref.ref[Tensor]] = []

    def fail(self: nn.Module, x: Tensor) -> Tensor:
        load = torch.empty(10)
        loads.append(weakref.ref(load))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(find("se").cls, "forward", fail)
    assert isinstance(next(run.table(["se"], QUICK)), Failure)
    assert [load() for load in loads] == [None]
