"""`attnzoo bench` as a run that is stopped, resumed, swept and spread over ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attnzoo import cli
from attnzoo.bench import results, sweep

from synthetic import row


def bench(folder: Path, *words: str) -> int:
    return cli.main(["bench", "--time", "0.01", "--threads", "1", "--out", str(folder), *words])


def test_resume_measures_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    assert bench(tmp_path, "se") == 0
    (first,) = results.load(tmp_path)
    assert bench(tmp_path, "danet_channel", "se", "--resume") == 0
    rows = results.load(tmp_path)
    assert [r.block for r in rows] == ["danet_channel", "se"]
    assert rows[1] == first
    assert bench(tmp_path, "danet_channel") == 0
    assert results.load(tmp_path / "previous") == rows


def test_two_ranks_share_the_rows_in_order(tmp_path: Path) -> None:
    names = ["se", "danet_channel", "se", "swiftformer"]
    words = ["bench", *names, "--time", "0.01", "--out", str(tmp_path)]
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "attnzoo"]
    paths = {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", *launch, *words],
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = results.load(tmp_path)
    assert [r.block for r in rows] == ["se", "danet_channel", "swiftformer"]
    assert not results.of_ranks(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep", "c"], "must be KEY=V1,V2"),
        (["--sweep", "c=8,8"], "each value must be there once"),
        (["--sweep", "reductoin=4,8"], "did you mean 'reduction'"),
        (["--sweep", "c=8,16", "--sweep", "c=4"], "each key once"),
        (["--sweep", "size=0,4"], "0 is not one of the whole numbers"),
        (["--sweep", "size=3x"], "'3x' is not one of the whole numbers of at least 1 or HxW"),
        (["--sweep", "c=8,NaN"], "a number must be finite"),
        (["--sweep", "c=8,1e999"], "a number must be finite"),
        (["--sweep", "c=8", "--c", "16"], "--c and --sweep c: give one of the two"),
        (["--sweep", "T=8", "--steps", "4"], "--steps and --sweep T: give one of the two"),
        (["--device", "meta"], "device='meta' computes nothing"),
        (["--threads", "100000"], "threads=100000 must be at most 1024"),
        (["--dtype", "float32,"], "dtype='' must be one of"),
        (["--mode", "eager,fast"], "mode='fast' must be one of"),
    ],
)
def test_misuse_is_worded(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path, "se", *words) == 2
    assert message in capsys.readouterr().err


def test_resume_refuses_a_damaged_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench.json").write_text('[{"schema": 1, ')
    assert bench(tmp_path, "se", "--resume") == 2
    assert "is damaged or no result file" in capsys.readouterr().err


def test_growth_is_the_exponent_that_made_the_rows() -> None:
    lines = [(row(c=c, macs=3 * c**2, memory_saved_bytes=5 * c), {"c": c}) for c in (8, 16, 64)]
    (growth,) = sweep.growth(lines)
    assert (growth.block, growth.unit, growth.points) == ("se", "c", 3)
    assert growth.exponents["MACs"] == pytest.approx(2)
    assert growth.exponents["saved bytes"] == pytest.approx(1)
    assert growth.exponents["forward"] == pytest.approx(0)


def test_values_are_json_or_text() -> None:
    assert sweep.parse("windows=[2,2],[4]").values == ([2, 2], [4])
    assert sweep.parse("variant=pvt,swin").values == ("pvt", "swin")
    assert sweep.parse("size=14,13x17").values == (14, (13, 17))
    points = sweep.points([sweep.parse("c=1,2"), sweep.parse("T=3,4")])
    assert json.dumps(points[:2]) == '[{"c": 1, "T": 3}, {"c": 1, "T": 4}]'
