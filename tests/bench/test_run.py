"""One row from end to end, the sizes it is measured at, and the command around it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnzoo
from attnzoo import cli, registry
from attnzoo.bench import job, report, runner
from attnzoo.bench.job import Settings
from attnzoo.bench.row import Failure, Row, from_json
from attnzoo.registry import find

SMALL = ("--time", "0.005", "--batch", "2", "--size", "7", "--c", "16")


def bench(*words: str) -> int:
    return cli.main(["bench", *SMALL, *words])


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "bench.jsonl").read_text().splitlines()]


def test_a_row_says_what_it_measured() -> None:
    row = attnzoo.measure("se", c=32, batch=3, size=(5, 7), min_time=0.005)
    assert row.shape == {"x": [3, 32, 5, 7]}
    assert row.config == {"c": 32, "reduction": 16, "bias": False}
    assert (row.params, row.macs, row.macs_executed, row.macs_executed_training) == (
        128,
        128,
        128,
        384,
    )
    assert row.bytes_forward == 4 * (2 * 3 * 32 * 5 * 7 + 128)
    assert row.fvcore_macs == 128
    assert row.threads == 1
    assert 0 < row.latency_forward.best <= row.latency_forward.p20 <= row.latency_forward.p80
    assert row.latency_forward.best < row.latency_training.best
    assert from_json(json.loads(json.dumps(row.to_json()))) == row


def test_a_saved_output_is_not_the_blocks_and_what_lies_between_is() -> None:
    """SE saves its pooled means, hidden layer, gate and logits; input and output are outside."""
    row = attnzoo.measure("se", c=32, batch=3, size=4, min_time=0.005)
    assert row.memory_saved_bytes == 4 * 3 * (32 + 2 + 32)


def test_what_runs_is_what_is_counted() -> None:
    """The hand-written pass is timed, so its work is counted; by hand at an odd size."""
    row = attnzoo.measure("dilated_inception", c=8, batch=2, steps=13, min_time=0.005)
    assert row.macs < row.macs_executed
    widest = 7 * 8 * 8  # all branches run as one convolution of the widest kernel
    assert row.macs_executed == 13 * widest


def test_a_keyword_that_the_block_has_is_the_blocks() -> None:
    row = attnzoo.measure(
        "trend_aware", c=16, heads=2, mode="causal", batch=2, steps=8, min_time=0.005
    )
    assert (row.config["mode"], row.mode) == ("causal", "eager")
    config, chosen = job.split(find("se"), {"mode": "compiled", "reduction": 4}, None)
    assert (config, chosen.mode) == ({"reduction": 4}, "compiled")
    with pytest.raises(TypeError, match="reducton"):
        attnzoo.measure("se", c=16, reducton=4)
    with pytest.raises(TypeError, match="size='32' must be int or"):
        attnzoo.measure("cbam", size="32")


def test_default_sizes_are_common_to_a_layout() -> None:
    sizes: dict[str, set[str]] = {}
    for name in attnzoo.names():
        one = job.example_job(name, {}, Settings())
        known = one.known()
        common = one.at == job.SIZES.get(known["layout"])
        if common and len(known["shape"]) == 1:  # not tokens with their image and text
            sizes.setdefault(known["layout"], set()).add(str(known["shape"]))
    assert sizes["image"] == {"{'x': [8, 256, 28, 28]}"}
    assert len(sizes["sequence"]) <= 2  # `agent` has images first


def test_a_block_that_refuses_the_common_size_has_its_own() -> None:
    one = job.example_job("dtm", {}, Settings())
    assert one.at == find("dtm").input_size
    own = job.configured_job("m_gtu", (8,), {"length": 12, "dropout": 0.0}, Settings())
    assert (own.config["length"], own.known()["shape"]["x"][1:]) == (12, [12, 8])
    wide = job.example_job("m_gtu", {}, Settings())
    assert (wide.config["length"], wide.at) == (96, job.SIZES["sequence"])
    shape = job.example_job("se", {"c": 48}, Settings(size=9)).known()["shape"]
    assert shape == {"x": [8, 48, 9, 9]}
    again = job.Job.from_json(json.loads(json.dumps(own.to_json())))
    assert again.identity() == own.identity()


def test_sweeps_make_every_combination(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[job.Job] = []
    monkeypatch.setattr(runner, "run_all", lambda those, *_: jobs.extend(those) or ([], ""))
    words = ["--sweep", "c=16,32", "--sweep", "size=7,5x9", "--sweep", "reduction=4"]
    assert cli.main(["bench", "se", "m_gtu", *words, "--batch", "3"]) == 0
    assert [one.known()["shape"]["x"] for one in jobs[:4]] == [
        [3, 16, 7, 7],
        [3, 16, 5, 9],
        [3, 32, 7, 7],
        [3, 32, 5, 9],
    ]
    assert jobs[0].config["reduction"] == 4
    assert "reduction" not in jobs[-1].config
    assert len(jobs) == 8


def test_progress_names_the_block_and_its_place() -> None:
    jobs, said = [job.example_job(name, {}, Settings()) for name in ("se", "eca")], []
    found, _ = runner.run_all(
        jobs, None, runner.Ranks(), lambda one: one.failed("why"), False, said.append
    )
    assert said == ["se (1 of 2)", "eca (2 of 2)", ""]
    assert [row.block for row in found] == ["se", "eca"]


def test_layout_and_family_choose_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[job.Job] = []
    monkeypatch.setattr(runner, "run_all", lambda those, *_: jobs.extend(those) or ([], ""))
    assert cli.main(["bench", "--layout", "image", "--family", "channel"]) == 0
    assert [one.block for one in jobs] == attnzoo.names(layout="image", family="channel")
    assert len(jobs) > 3


def test_each_rank_has_a_device_of_its_own() -> None:
    assert runner.Ranks(1, 2, 1).device("cuda") == "cuda:1"
    assert runner.Ranks(1, 2, 1).device("cpu") == "cpu"
    assert runner.Ranks().device("cuda") == "cuda"


def test_the_command_writes_resumes_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: nn.Module, x: Tensor) -> Tensor:
        if not x.is_meta:  # sizes are tried there before the run
            raise KeyboardInterrupt
        return x

    monkeypatch.setattr(report, "pictures", lambda rows, folder: {})
    out = ("--out", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(find("danet_channel").cls, "forward", interrupted)
        assert bench("se", "danet_channel", *out) == 130
    assert "interrupted with 1 rows; --resume goes on" in capsys.readouterr().err
    (first,) = rows(tmp_path)
    assert bench("se", "danet_channel", "--baseline", "se", *out, "--resume") == 0
    assert rows(tmp_path)[0] == first
    assert [row["block"] for row in rows(tmp_path)] == ["se", "danet_channel"]
    assert json.loads((tmp_path / "bench.json").read_text()) == rows(tmp_path)
    names = {"bench.md", "bench.tex", "bench.csv", "bench.html"}
    assert names <= {file.name for file in tmp_path.iterdir()}
    printed = capsys.readouterr().out
    assert "/ baseline" in printed
    assert "1.00" in printed
    assert bench("se", *out) == 0
    assert len(rows(tmp_path)) == 1
    assert (tmp_path / "previous" / "bench.jsonl").exists()


def test_a_failure_is_told_and_the_others_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "se", "cbam", *SMALL[:-1], "8", "--out", str(tmp_path)]) == 1
    assert "attnzoo: se has no row: ValueError" in capsys.readouterr().err
    assert ["error" in row for row in rows(tmp_path)] == [True, True]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--resume",), "--resume goes on with the run in --out DIR"),
        (("se", "--timeout", "0"), "--timeout 0.0 must be a positive number"),
        (("se", "--import", "no_such_module"), "--import no_such_module: No module named"),
        (("se", "--sweep", "colour=1,2"), "--sweep='colour'"),
        (("se", "--sweep", "c=1,2"), "--sweep c=1,2: c has its values from another option"),
        (("se", "--sweep", "r"), "--sweep 'r' must be KEY=V1,V2"),
        (("se", "--sweep", "bias=1,1"), "each value must be there once"),
        (("se", "--sweep", "T=0"), "steps=0 must be at least 1"),
        (("se", "--sweep", "T=4", "--sweep", "T=5"), "steps has its values from another option"),
        (("se", "--columns", "speed"), "--columns 'speed' must be of block, "),
        (("se", "--mode", "fast"), "mode='fast' must be one of 'eager'"),
    ],
)
def test_misuse_is_refused_in_words(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*words) == 2
    assert message in capsys.readouterr().err


OWN = """
import os, time, torch, attnzoo
from attnzoo.bench.timing import roofline

roofline.FOOTPRINTS, roofline.SIDES, roofline.SECONDS = (2**15,), (64,), 0.001

class Own(torch.nn.Module):
    def __init__(self, c: int, act: str = "none") -> None:
        super().__init__()
        self.act, self.scale = act, torch.nn.Parameter(torch.ones(c, 1, 1))

    def forward(self, x):
        if not x.is_meta:
            print("a word of the block's own")
            acts = {"hang": lambda: time.sleep(99), "die": lambda: os._exit(7)}
            acts.get(self.act, lambda: None)()
        return x * self.scale

attnzoo.register("own_block", Own, layout="image", example={"c": 4})
"""


@pytest.fixture
def own_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's module that registers a block, found here and by processes of rows."""
    monkeypatch.setattr(registry, "_blocks", dict(registry._catalogue()))
    monkeypatch.delitem(sys.modules, "own_block_module", raising=False)
    (tmp_path / "own_block_module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("own_block")
def test_a_row_that_hangs_or_dies_spoils_no_other() -> None:
    __import__("own_block_module")
    options = Settings(batch=2, size=4, min_time=0.005)

    def perform(act: str, timeout: float = 300.0) -> Row | Failure:
        one = job.configured_job("own_block", (4,), {"act": act}, options)
        return runner.perform_apart(one, timeout, ["own_block_module"])

    right = perform("none")
    assert isinstance(right, Row), right
    died = perform("die")
    assert isinstance(died, Failure)
    assert died.error == "stopped: its process ended with status 7"
    assert isinstance(perform("none"), Row)
    start = time.monotonic()
    hung = perform("hang", timeout=10.0)
    assert isinstance(hung, Failure)
    assert hung.error == "stopped: no answer within 10 seconds"
    assert time.monotonic() - start < 30


@pytest.mark.slow
@pytest.mark.usefixtures("own_block")
def test_the_command_stops_a_row_that_hangs_and_outlives_one_that_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["own_block", "--import", "own_block_module", "--out", str(tmp_path), *SMALL[:4]]
    assert cli.main(["bench", *words, "--sweep", "act=die,none", "--isolate"]) == 1
    died, measured = rows(tmp_path)
    assert died["error"] == "stopped: its process ended with status 7"
    assert measured["latency_forward_ms"] > 0
    assert cli.main(["bench", *words, "--sweep", "act=hang", "--timeout", "5"]) == 1
    (hung,) = rows(tmp_path)
    assert hung["error"] == "stopped: no answer within 5 seconds"
    assert "own_block has no row: stopped: no answer" in capsys.readouterr().err


@pytest.mark.slow
def test_ranks_share_the_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = ["-m", "attnzoo", "bench", "se", "coordatt", "m_gtu", *SMALL[:2]]
    path = {"PYTHONPATH": str(Path(attnzoo.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **path}
    subprocess.run([*command, *words, "--out", str(tmp_path)], env=environment, check=True)
    assert [row["block"] for row in rows(tmp_path)] == ["se", "coordatt", "m_gtu"]
    assert not list(tmp_path.glob("bench.rank*"))


@pytest.mark.slow
def test_sknet_is_not_refused_at_the_common_size() -> None:
    assert torch.get_num_threads() >= 1
    assert attnzoo.measure("sknet", c=256, min_time=0.01).checked_error < 4e-4
