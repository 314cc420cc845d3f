"""The command line: output, exit status and errors."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

import attnzoo
from attnzoo import cli, reference


def run(*words: str) -> int:
    try:
        return cli.main(words)
    except SystemExit as stop:  # argparse ends this way
        return int(str(stop.code))


def test_without_a_command_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "attnzoo bench se cbam" in capsys.readouterr().out


def test_show_prints_the_ranges_of_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", "cbam") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "kernel_size at least 1, odd" in lines
    assert "c at least 1" in lines


def test_list_has_every_block(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == attnzoo.names()
    assert run("list", "selective", "--family", "channel") == 0
    assert "1 block;" in capsys.readouterr().out


@pytest.mark.parametrize("name", attnzoo.names())
def test_show_prints_every_section(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("show", name) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name}(")
    for label in ("Paper:", "Math:", "Cost:", "multiply-adds", "Supported:"):
        assert label in text


def test_verify_prints_cases_error_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", "se") == 0
    assert "moskomule/senet.pytorch@8cb2669" in capsys.readouterr().out


def test_verify_fails_on_a_wrong_block(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = type(attnzoo.build("se", 16))
    right = block.forward
    monkeypatch.setattr(block, "forward", lambda self, x: right(self, x) * (1 + 1e-6))
    assert run("verify", "se") == 1
    streams = capsys.readouterr()
    assert "WRONG" in streams.out
    assert "se base: " in streams.err
    assert not reference.verify("se")[0].passed


def test_verify_tells_one_wrong_case_among_right_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = reference.verify("se")[0]
    wrong = replace(right, case="spoiled", error=1e-3, worst="output.0")
    monkeypatch.setattr(reference, "verify", lambda name: [right, wrong, right])
    assert run("verify", "se") == 1
    streams = capsys.readouterr()
    assert re.search(r"se +3 +1\.0e-03 +WRONG", streams.out)
    assert streams.err == "attnzoo: se spoiled: output.0 is off by 1.0e-03, over 1e-09\n"


def test_errors_of_types_and_files_end_with_status_two(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (ValueError, TypeError, OSError):
        monkeypatch.setattr(reference, "verify", Mock(side_effect=kind("no such thing")))
        assert run("verify", "se") == 2
        streams = capsys.readouterr()
        assert (streams.out, streams.err) == ("", "attnzoo: no such thing\n")


def test_bench_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["se", "--c", "32", "--size", "5x7", "--batch", "3", "--time", "0.01"]
    assert run("bench", *words, "--out", str(tmp_path / "new")) == 0
    assert "3x32x5x7" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "new" / "bench.json").read_text())
    assert row["block"] == "se"
    assert row["config"]["c"] == 32
    assert row["shape"] == {"x": [3, 32, 5, 7]}
    assert row["params"] == row["macs"] == 2 * 32 * 2
    assert 0 < row["latency_forward_ms"] < row["latency_training_p80_ms"]
    assert row["memory_saved_bytes"] > 0
    text = (tmp_path / "new" / "bench.md").read_text()
    assert "| image | 3x32x5x7 | c=32, reduction=16, bias=False |" in " ".join(text.split())


def test_one_failing_block_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["se", "danet_channel", "--c", "8", "--size", "4", "--time", "0.01"]
    assert run("bench", *words, "--out", str(tmp_path)) == 1
    assert "se has no row: ValueError: reduction=16" in capsys.readouterr().err
    failed, measured = json.loads((tmp_path / "bench.json").read_text())
    assert failed["error"].startswith("ValueError")
    assert measured["block"] == "danet_channel"
    assert "se has no row" in (tmp_path / "bench.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "SENet"], "did you mean 'se'"),
        (["bench", "ca"], "'coordatt'"),
        (["bench", "se", "--dtype", "int8"], "dtype='int8' must be one of"),
        (["bench", "se", "--device", "nowhere"], "device='nowhere' cannot be used here"),
        (["bench", "se", "--size", "0"], "'0' must be a side N or HxW"),
        (["bench", "se", "--batch", "0"], "'0' must be a whole number of at least 1"),
        (["bench", "se", "--time", "0"], "min_time=0.0 must be above 0"),
        (["bench", "se", "--c", "many"], "'many' must be a whole number"),
        (["bench", "se", "--out", __file__], "must be a folder; there is a file"),
        (["bench", "se", "--size", "5x9999999999"], "must be a side N or HxW"),
        (["bench", "se", "--c", "16", "--sweep", "c=8,16"], "c has its values from another option"),
        (["bench", "se", "--sweep", "c=8,8"], "each value must be there once"),
        (["timm", "se", "no_such_net*"], "'no_such_net*' matches no network of timm"),
        (["list", "--layout", "images"], "invalid choice: 'images'"),
        (["verify", "nothing"], "no block is named 'nothing'"),
        (["explode"], "invalid choice: 'explode'"),
    ],
)
def test_invalid_usage_is_explained(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_closed_pipe_is_no_error() -> None:
    script = f"{sys.executable} -m attnzoo list | head -n 1"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("name")
    assert not done.stderr
