"""`attnzoo bench --out` that is killed, interrupted, crowded or refused: what is left of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import Tensor, nn

from attnzoo import cli
from attnzoo.bench import record, results
from attnzoo.bench.row import Failure, Row
from attnzoo.registry import find

from synthetic import row

ROOT = str(Path(cli.__file__).parents[1])
NAMES = ["se", "danet_channel", "coordatt", "m_gtu"]


def bench(folder: Path, *words: str) -> int:
    return cli.main(["bench", "--time", "0.01", "--threads", "1", "--out", str(folder), *words])


def read(folder: Path) -> list[dict[str, Any]]:
    rows = json.loads((folder / "bench.json").read_text())
    Draft202012Validator(results.schema()).validate(rows)
    return list(rows)


KILLED = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from attnzoo.cli import main
from attnzoo.bench import drive, results, roofline

roofline.verdict({"forward": roofline.Work(1, 1, 1, 1.0)}, drive.run.Settings())  # once for all
folder, names = Path(sys.argv[1]), sys.argv[2:]
moments, seen = random.Random(0), {}
for turn in range(100):
    run = os.fork()
    if run == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        words = ["--time", "0.02", "--threads", "1", "--out", str(folder), "--resume"]
        os._exit(cli.main(["bench", *names, *words]))
    time.sleep(moments.uniform(0.0, 1.0 + turn / 4))  # however slow the machine is
    ended, status = os.waitpid(run, os.WNOHANG)
    if ended:
        assert status == 0, status
        break
    os.kill(run, signal.SIGKILL)
    assert os.waitpid(run, 0)[1] == signal.SIGKILL
    rows = results.load(folder) if (folder / "bench.json").exists() else []
    found = {row.block: row for row in rows}
    assert len(found) == len(rows), "a row twice"
    assert all(found.get(name) == row for name, row in seen.items()), "a row lost"
    seen = found
print(json.dumps([turn, sorted(seen)]))
"""


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_each_row_once(tmp_path: Path) -> None:
    """Each turn goes on with `--resume` and is killed at a random moment, until one ends."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), *NAMES],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    turns, before_the_last = json.loads(done.stdout)
    assert turns > 0
    assert set(before_the_last) <= set(NAMES)
    assert [r["block"] for r in read(tmp_path)] == NAMES
    assert not list(tmp_path.glob("*.part"))


def test_an_interrupt_keeps_the_rows_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(self: nn.Module, x: Tensor) -> Tensor:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
        raise AssertionError("an interrupt ends the run before this")

    with monkeypatch.context() as pressed:
        pressed.setattr(find("coordatt").cls, "forward", press)
        assert bench(tmp_path, *NAMES) == 130
    assert "interrupted with 2 rows measured; --resume goes on" in capsys.readouterr().err
    first = read(tmp_path)
    assert [r["block"] for r in first] == NAMES[:2]
    assert (tmp_path / "bench.html").exists()
    assert bench(tmp_path, *NAMES, "--resume") == 0
    rows = read(tmp_path)
    assert [r["block"] for r in rows] == NAMES
    assert rows[:2] == first


DYING = """
import os, signal, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from attnzoo.cli import main
from attnzoo.bench import results
from attnzoo.registry import find

def die(self, x):
    while not results.load(Path(sys.argv[-1])):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

find("danet_channel").cls.forward = die
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_rank_that_dies_leaves_the_rows_of_the_others(tmp_path: Path) -> None:
    """Rank 1 dies of its first row, once rank 0, which has the two others to do, has one."""
    script, out = tmp_path / "dying.py", tmp_path / "out"
    script.write_text(DYING)
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    words = ["bench", *NAMES[:3], "--time", "0.01", "--threads", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *words],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    kept = read(out)
    assert {"se"} <= {r["block"] for r in kept} <= {"se", "coordatt"}, done.stderr
    assert bench(out, *NAMES[:3], "--resume") == 0
    rows = read(out)
    assert [r["block"] for r in rows] == NAMES[:3]
    assert all(r in rows for r in kept)


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_out_of_memory_is_a_row(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: nn.Module, x: Tensor) -> Tensor:
        raise error("no room")

    with monkeypatch.context() as small:
        small.setattr(find("se").cls, "forward", fail)
        assert bench(tmp_path, "se", "danet_channel") == 1
    failed, measured = read(tmp_path)
    assert failed["error"] == f"{error.__name__}: no room"
    assert measured["block"] == "danet_channel"
    assert bench(tmp_path, "se", "danet_channel", "--resume") == 0
    again, same = read(tmp_path)
    assert "error" not in again
    assert same == measured


def test_a_wrong_block_gets_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = find("se").cls.forward

    def wrong(self: nn.Module, x: Tensor) -> Tensor:
        return right(self, x) * (1.01 if x.dtype == torch.float32 else 1.0)

    monkeypatch.setattr(find("se").cls, "forward", wrong)
    assert bench(tmp_path, "se", "--dtype", "float32,float64") == 1
    captured = capsys.readouterr()
    failed, measured = read(tmp_path)
    assert failed["error"].startswith("WrongResultError: se is not timed: inference: output 0")
    assert not any(key.endswith("_ms") for key in failed)
    assert (failed["dtype"], measured["dtype"]) == ("float32", "float64")
    assert "not measured" in captured.out
    assert "se has no row: WrongResultError" in captured.err


def test_a_block_that_cannot_even_be_described_is_a_row(tmp_path: Path) -> None:
    """The shape for a negative width cannot be told; the reason is the block's own."""
    assert bench(tmp_path, "se", "danet_channel", "--sweep", "c=-4,16") == 1
    assert [(r["block"], r["config"]["c"]) for r in read(tmp_path) if "error" not in r] == [
        ("se", 16),
        ("danet_channel", 16),
    ]
    errors = [r["error"] for r in read(tmp_path) if "error" in r]
    assert len(errors) == 2
    assert all(error.startswith("ValueError: c=-4 must be at least 1") for error in errors)


def test_two_runs_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with results.locked(tmp_path):
        assert bench(tmp_path, "se") == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert not (tmp_path / "bench.json").exists()


def test_a_folder_that_cannot_be_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("attnzoo.bench.run.perform", None)  # nothing can be measured
    file = tmp_path / "file"
    file.touch()
    assert bench(file, "se") == 2
    assert "must be a folder; there is a file of that name" in capsys.readouterr().err
    assert bench(file / "below", "se") == 2
    assert "attnzoo: [Errno" in capsys.readouterr().err
    denied = PermissionError(13, "Permission denied", str(tmp_path / "locked"))
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: (_ for _ in ()).throw(denied))
    assert bench(tmp_path / "locked", "se") == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_full_disk_ends_the_run_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        if (tmp_path / "bench.json").exists() and len(read(tmp_path)) == 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert bench(tmp_path, "se", "danet_channel") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [r["block"] for r in read(tmp_path)] == ["se"]


def test_modes_and_dtypes_make_a_row_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def perform(task: Any) -> Row:
        asked.append((task.block, task.settings.dtype, task.settings.mode))
        return row(task.block, dtype=task.settings.dtype, mode=task.settings.mode)

    monkeypatch.setattr("attnzoo.bench.run.perform", perform)
    words = ["--dtype", "float32,bfloat16,float32", "--mode", "eager,compiled"]
    assert bench(tmp_path, "se", "cbam", *words) == 0
    kinds = [(d, m) for d in ("float32", "bfloat16") for m in ("eager", "compiled")]
    assert asked == [(name, *kind) for name in ("se", "cbam") for kind in kinds]
    assert len(read(tmp_path)) == 8


def test_a_fresh_run_takes_no_rows_of_an_earlier_ones_ranks(tmp_path: Path) -> None:
    results.save(tmp_path / "bench.json", [row("a")])
    results.save(results.of_rank(tmp_path, 1), [row("b")])
    assert record.Record([], tmp_path).begin({}, resume=False) == set()
    assert results.load(tmp_path) == []
    assert not results.of_ranks(tmp_path)
    assert results.load(tmp_path / "previous") == [row("a")]
    assert results.load(tmp_path / "previous" / "bench.rank1.json") == [row("b")]


def test_resuming_reads_rows_that_were_edited_by_hand(tmp_path: Path) -> None:
    """A removed row is measured again, another run's stays, one without fields is refused."""
    assert bench(tmp_path, "se", "danet_channel") == 0
    se, danet = read(tmp_path)
    other = {**danet, "block": "mine"}
    (tmp_path / "bench.json").write_text(json.dumps([other, danet]))
    assert bench(tmp_path, "se", "danet_channel", "--resume") == 0
    found = read(tmp_path)
    assert [r["block"] for r in found] == ["mine", "se", "danet_channel"]
    assert (found[0], found[2]) == (other, danet)
    assert found[1] != se
    for rows in ([{"block": "se", "latency_forward_ms": 1.0}], [{**se, "schema": 2}]):
        text = json.dumps(rows)
        (tmp_path / "bench.json").write_text(text)
        assert bench(tmp_path, "se", "--resume") == 2
        assert (tmp_path / "bench.json").read_text() == text


def test_real_rows_meet_the_schema(tmp_path: Path) -> None:
    words = ["--dtype", "float32,bfloat16", "--autocast"]
    assert bench(tmp_path, "se", "dtm", "--dtype", "float32,float16") == 0
    kinds = {type(r) for r in results.load(tmp_path)}
    assert kinds == {Row}
    assert len(read(tmp_path)) == 4
    assert bench(tmp_path, "se", *words) == 2  # autocast computes in half precision
    assert bench(tmp_path, "se", "--c", "4") == 1
    assert {type(r) for r in results.load(tmp_path)} == {Failure}
    assert len(read(tmp_path)) == 1
