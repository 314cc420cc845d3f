"""Comparing two runs: what moved is named, and noise alone moves nothing."""

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from attnzoo import cli
from attnzoo.bench import results
from attnzoo.bench.compare import Change, compare
from attnzoo.bench.row import Failure, Row

from synthetic import MS, row, slower

BLOCKS = [f"block{i}" for i in range(21)]


def verdicts(changes: list[Change]) -> dict[str, str]:
    return {change.quantity: change.verdict for change in changes if change.verdict != "same"}


def test_a_run_equals_itself() -> None:
    rows = [row(), row(c=32), row(dtype="bfloat16"), Failure(block="cbam", error="ValueError: why")]
    changes = compare(rows, rows)
    assert {c.verdict for c in changes} == {"same", "fails still"}
    assert not any(c.regression for c in changes)
    assert [c.row for c in changes if c.quantity == "latency_forward_ms"] == [
        "se c=64 shape=2x64x14x14 dtype=float32",
        "se c=32 shape=2x32x14x14 dtype=float32",
        "se c=64 shape=2x64x14x14 dtype=bfloat16",
        "cbam",
    ]


def test_a_slower_pass_is_named_and_a_faster_one_is_no_regression() -> None:
    slow = row(latency_training=slower(MS, 1.3))
    assert verdicts(compare([row()], [slow])) == {"latency_training_ms": "slower"}
    assert [c.regression for c in compare([row()], [slow]) if c.verdict == "slower"] == [True]
    assert verdicts(compare([slow], [row()])) == {"latency_training_ms": "faster"}
    assert not any(c.regression for c in compare([slow], [row()]))


def test_tolerance_is_what_may_be_lost() -> None:
    slow = row(latency_forward=slower(MS, 1.3))
    assert verdicts(compare([row()], [slow], tolerance=0.35)) == {}
    rows = [row(block) for block in BLOCKS]  # a run that repeats another to the digit
    pair = rows, [replace(rows[0], latency_forward=slower(MS, 1.05)), *rows[1:]]
    assert verdicts(compare(*pair)) == {}
    assert verdicts(compare(*pair, tolerance=0.02)) == {"latency_forward_ms": "slower"}


def test_a_slower_machine_is_taken_out() -> None:
    """Everything, the pulse too, takes 1.4 times as long: nothing moved."""
    late = replace(slower(MS, 1.4), pulse_us=1.4 * MS.pulse_us)
    busy = row(latency_forward=late, latency_training=late)
    assert verdicts(compare([row()], [busy])) == {}
    still = replace(busy, latency_forward=replace(late, median=MS.median))
    assert verdicts(compare([row()], [still])) == {"latency_forward_ms": "faster"}


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_moves_nothing_and_a_planted_row_stands_out(seed: int) -> None:
    """Two runs of a machine that is up to twice as slow now and then; the pulse tells nearly."""
    random = Random(seed)

    def noisy(block: str) -> Row:
        busy = random.uniform(1, 2)
        beside = [busy * math.exp(random.gauss(0, 0.025)) * MS.pulse_us for _ in range(2)]
        return row(
            block,
            latency_forward=replace(slower(MS, busy), pulse_us=beside[0]),
            latency_training=replace(slower(MS, busy), pulse_us=beside[1]),
        )

    old, new = ([noisy(block) for block in BLOCKS] for _ in range(2))
    assert not any(c.regression for c in compare(old, new, tolerance=0.15))
    planted = slower(new[seed].latency_forward, 1.5)
    new[seed] = replace(new[seed], latency_forward=planted)
    (found,) = [c for c in compare(old, new, tolerance=0.15) if c.regression]
    assert (found.row, found.quantity) == (BLOCKS[seed], "latency_forward_ms")


def test_a_change_to_all_rows_is_told() -> None:
    """What every row shares got slower, the pulse did not."""
    old = [row(block) for block in BLOCKS]
    late = slower(MS, 1.3)
    new = [replace(one, latency_forward=late, latency_training=late) for one in old]
    (whole,) = [c for c in compare(old, new) if c.regression]
    assert whole.row == "all rows"


def test_exact_quantities_are_exact_and_memory_has_the_tolerance() -> None:
    new = row(params=513, macs=500, bytes_forward=200_001, memory_saved_bytes=1099)
    changes = compare([row()], [new])
    assert verdicts(changes) == {
        "params": "more",
        "macs": "less",
        "bytes_forward": "more",
        "memory_saved_bytes": "more",
    }
    assert not any(c.regression for c in changes)
    more = compare([row()], [row(memory_saved_bytes=1101)])
    assert [c.quantity for c in more if c.regression] == ["memory_saved_bytes"]


def test_a_block_that_had_a_time_and_fails_is_a_regression() -> None:
    identity = json.loads(row().identity())
    known = {k: v for k, v in identity.items() if k not in ("schema", "block")}
    for failed in (
        Failure(block="se", error="RuntimeError: no", known=known),
        Failure(block="se", error="RuntimeError: no"),
    ):
        (change,) = [
            c for c in compare([row(), row("cbam")], [failed, row("cbam")]) if c.row == "se"
        ]
        assert (change.verdict, change.regression) == ("fails", True)
        (change,) = [
            c for c in compare([failed, row("cbam")], [row(), row("cbam")]) if c.row == "se"
        ]
        assert (change.verdict, change.regression) == ("works", False)


def test_rows_of_one_side_are_shown() -> None:
    changes = compare([row(), row("cbam")], [row(), row("eca")])
    assert {c.row: c.verdict for c in changes if c.verdict != "same"} == {
        "cbam": "gone",
        "eca": "added",
    }
    with pytest.raises(ValueError, match="no row in common"):
        compare([row("cbam")], [row("eca")])
    with pytest.raises(ValueError, match="NEW has two rows of se alike"):
        compare([row()], [row(), row()])


@pytest.mark.parametrize(
    "changed",
    [
        {"device_name": "another"},
        {"device": "cuda:0"},
        {"threads": 1},
        {"torch": "2.6.0"},
        {"python": "3.10.0"},
        {"dtype": "float16"},
        {"autocast": True},
        {"channels_last": True},
        {"mode": "compiled"},
    ],
)
def test_different_runs_are_refused_unless_told(changed: dict[str, object]) -> None:
    (name,) = changed
    other = row(**changed, latency_forward=slower(MS, 1.5))
    with pytest.raises(ValueError, match=f"differ in {name}: .*--allow-different"):
        compare([row()], [other])
    changes = compare([row()], [other], allow_different=True)
    assert verdicts(changes) == {"latency_forward_ms": "slower"}


def test_two_versions_of_attnzoo_are_what_one_compares() -> None:
    assert verdicts(compare([row()], [row(attnzoo="0.2.0")])) == {}


def command(old: list[Row], new: list[Row], folder: Path, *words: str) -> int:
    for name, rows in (("old", old), ("new", new)):
        (folder / name).mkdir(exist_ok=True)
        results.save(folder / name / "bench.json", rows)
    return cli.main(["compare", str(folder / "old"), str(folder / "new" / "bench.json"), *words])


def test_the_command_tells_and_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = row(latency_forward=slower(MS, 1.3))
    assert command([row()], [row()], tmp_path) == 0
    assert "nothing moved" in capsys.readouterr().out
    assert command([row(), row("eca")], [slow, row("eca", params=3)], tmp_path) == 1
    text = capsys.readouterr().out
    assert "1.30 (1.09 to 1.55)" in text
    assert "slower" in text
    assert "512 -> 3" in " ".join(text.split())
    assert command([row()], [slow], tmp_path, "--tolerance", "0.5") == 0
    assert command([slow], [row()], tmp_path) == 0
    capsys.readouterr()
    assert command([row()], [row(torch="2.6.0")], tmp_path) == 2
    assert "differ in torch: 2.15.0 and 2.6.0" in capsys.readouterr().err
    assert command([row()], [row(torch="2.6.0")], tmp_path, "--allow-different") == 0
    assert command([row()], [row()], tmp_path, "--tolerance", "-1") == 2
    assert cli.main(["compare", str(tmp_path / "old"), str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err
