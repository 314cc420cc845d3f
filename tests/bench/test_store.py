"""Records that check themselves, and files of them that a kill leaves whole."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from attnzoo.bench import store
from attnzoo.bench.job import Settings
from attnzoo.bench.row import Failure, Latency, from_json

from synthetic import row

FAILED = Failure(block="cbam", error="ValueError: why", known={"dtype": "float32"})


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [row(), row("cbam", latency_forward_cold=row().latency_forward), FAILED]
    for one in rows:
        store.append(tmp_path / store.NAME, one)
    assert store.load(tmp_path / store.NAME) == rows
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([one.to_json() for one in rows]))
    assert store.load(listed) == rows


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("macs", 1.5, "macs=1.5 must be int, not float"),
        ("macs", True, "macs=True must be int, not bool"),
        ("mode", "fast", "mode='fast' must be one of 'eager', 'compiled', 'cudagraph'"),
        ("latency_forward_samples", "9", "samples='9' must be int, not str"),
        ("schema", 1, "schema=1 must be 3"),
        ("colour", 1, "colour"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json({**row().to_json(), field: value})
    missing = row().to_json()
    del missing["params"]
    with pytest.raises(ValueError, match="params"):
        from_json(missing)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": "32"}, TypeError, "size='32' must be int or a list or tuple"),
        ({"size": 0}, ValueError, "size=0 must be at least 1"),
        ({"dtype": "int8"}, ValueError, "dtype='int8' must be one of 'float64'"),
        ({"threads": 0}, ValueError, "threads=0 must be at least 1 and at most 1024"),
        ({"device": "meta"}, ValueError, "computes nothing"),
        ({"cold": True}, ValueError, "cold=True needs a CUDA device"),
        ({"autocast": True}, ValueError, "autocast=True needs 'bfloat16'"),
        ({"min_time": float("nan")}, ValueError, "min_time=nan must be finite"),
    ],
)
def test_settings_check_themselves(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Settings(**options)


def test_the_keys_of_a_latency() -> None:
    keys = [key for key in row().to_json() if key.startswith("latency_forward_")][:7]
    ends = ("ms", "p20_ms", "median_ms", "p80_ms", "samples", "disturbed", "settled")
    assert keys == [f"latency_forward_{end}" for end in ends]
    assert Latency(1, 1, 1, 1, 1, 0, True).best == 1


def test_what_a_kill_left_of_a_line_is_no_row(tmp_path: Path) -> None:
    file = store.file_of(tmp_path)
    store.append(file, row())
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:100])
    assert store.load(tmp_path) == [row()]
    assert store.begin(tmp_path, resume=True) == [row()]
    store.append(file, row("cbam"))
    assert [one.block for one in store.load(tmp_path)] == ["se", "cbam"]
    file.write_bytes(b"{broken}\n" + whole)
    with pytest.raises(ValueError, match=r"bench.jsonl is damaged"):
        store.load(tmp_path)


def test_ranks_are_joined_and_an_earlier_run_is_set_aside(tmp_path: Path) -> None:
    store.append(store.file_of(tmp_path), row("b"))
    store.append(store.file_of(tmp_path, 1), row("a"))
    rows = store.load(tmp_path)
    order = [store.key(row(name)) for name in ("a", "b")]
    assert [one.block for one in store.arranged(order, rows)] == ["a", "b"]
    store.join(tmp_path, rows)
    assert [file.name for file in tmp_path.glob("*.jsonl")] == [store.NAME]
    assert store.begin(tmp_path, resume=False) == []
    assert (tmp_path / store.PREVIOUS / store.NAME).exists()
    assert not store.file_of(tmp_path).exists()


def test_a_failure_does_not_take_a_rows_place() -> None:
    failed = Failure(block="se", error="why", known=row().identity())
    failed.known.pop("schema"), failed.known.pop("block")
    assert store.arranged([], [row(), failed]) == [row()]
    assert store.arranged([], [failed, row()]) == [row()]


def test_another_machines_rows_have_other_keys(tmp_path: Path) -> None:
    here, there = row(), row(device_name="another")
    assert store.key(here) != store.key(there)
    assert store.key(row(device="cuda:0")) == store.key(row(device="cuda:1"))
    store.append(store.file_of(tmp_path), there)
    assert store.begin(tmp_path, resume=True) == [there]
    assert store.arranged([store.key(here)], [there, here]) == [there, here]


APPENDING = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from attnzoo.bench import store
from synthetic import row
file = store.file_of(Path(sys.argv[1]))
count = len(store.load(file)) if file.exists() else 0
store.join(Path(sys.argv[1]), store.load(file)) if file.exists() else None
while True:
    store.append(file, row(f"block{count}"))
    print(count, flush=True)
    count += 1
"""


def test_a_process_that_stops_at_any_moment_leaves_whole_rows(tmp_path: Path) -> None:
    """Every row that was reported as kept is there after each kill, once."""
    random, path = Random(0), [str(Path(__file__).parents[2]), str(Path(__file__).parent)]
    script = tmp_path / "appending.py"
    script.write_text(APPENDING)
    fork = [sys.executable, str(script), str(tmp_path), *path]
    process = subprocess.Popen(fork, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(20):  # kills of a child that shares the loaded modules would hide nothing
        last = int(process.stdout.readline())
        time.sleep(random.uniform(0, 0.01))
        os.kill(process.pid, signal.SIGKILL if _ == 19 else signal.SIGSTOP)
        blocks = [one.block for one in store.load(store.file_of(tmp_path))]
        assert blocks == [f"block{i}" for i in range(len(blocks))]
        assert len(blocks) > last
        if _ < 19:
            os.kill(process.pid, signal.SIGCONT)
    process.wait()
    process.stdout.close()


RUN = """
import sys
from attnzoo.bench.timing import clock, roofline

roofline.FOOTPRINTS, roofline.SIDES, roofline.SECONDS = (2**15,), (64,), 0.001
clock.MAX_OVERTIME = 1
from attnzoo import cli

sys.exit(cli.main(["bench", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_run_survives_twenty_kills(tmp_path: Path) -> None:
    """kill -9 of the command, by turns after so many new rows and after any time from its start."""
    random, file = Random(0), store.file_of(tmp_path)
    names, sizes = ("se", "eca", "simam"), range(4, 20)
    words = ["--c", "16", "--batch", "1", "--time", "0.001", "--out", str(tmp_path), "--resume"]
    swept = f"size={','.join(map(str, sizes))}"
    command = [sys.executable, "-c", RUN, *names, "--sweep", swept, *words]
    path = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    before: list[str] = []

    def lines() -> list[str]:
        return file.read_text().splitlines() if file.exists() else []

    for kill in range(20):
        process = subprocess.Popen(
            command, env={**os.environ, **path}, stdout=subprocess.DEVNULL, stderr=sys.stderr
        )
        start = time.monotonic()
        while kill % 2 == 0 and len(lines()) <= len(before) + kill % 3:
            assert process.poll() is None and time.monotonic() < start + 300
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.3 if kill % 2 == 0 else 6.0))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        if before or file.exists():
            rows = [json.dumps(row.to_json()) for row in store.load(file)]
            assert rows[: len(before)] == before  # whatever was there stays as it was
            assert len(lines()) - len(rows) in (0, 1)  # the one that it was writing
            before = rows
    assert 10 <= len(before) < len(names) * len(sizes)
    subprocess.run(command, env={**os.environ, **path}, stdout=subprocess.DEVNULL, check=True)
    rows = [json.loads(line) for line in lines()]
    assert [json.dumps(row) for row in rows[: len(before)]] == before
    found = [(row["block"], row["shape"]["x"][-1]) for row in rows]
    assert found == [(name, size) for name in names for size in sizes]
    assert json.loads((tmp_path / "bench.json").read_text()) == rows
