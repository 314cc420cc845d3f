"""Comparing: the sampler and its verdict, processes of two checkouts, and two result files."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import attnzoo
from attnzoo import cli
from attnzoo.bench import store
from attnzoo.bench.compare import files, versions
from attnzoo.bench.compare.interleave import ORDER, Timing, interleave
from attnzoo.bench.compare.versions import confirmed
from attnzoo.bench.job import Job, Settings
from attnzoo.bench.row import Failure, Result

from synthetic import row, slower

TOLERANCE = 0.1
PACKAGE = Path(attnzoo.__file__).parent


def busy(seed: int) -> Callable[[float], float]:
    """A machine that is undisturbed for a fifth of the samples, and else up to three times slow."""
    random = Random(seed)
    return lambda seconds: seconds * max(1.0, random.uniform(0.5, 3.0)) * random.uniform(1.0, 1.01)


def measured(machine: Callable[[float], float], b: float, seconds: float = 1e-3) -> Timing:
    true = {"a": seconds, "null": seconds, "b": b * seconds}
    sides = {n: lambda k, t=t: [machine(t) for _ in range(k)] for n, t in true.items()}
    return interleave(sides, TOLERANCE)


@pytest.mark.parametrize("seed", range(40))
def test_a_tenth_is_found_and_nothing_is_not(seed: int) -> None:
    machine = busy(seed)
    assert measured(machine, 1.0).verdict(TOLERANCE) == "same"
    assert measured(machine, 1.1).verdict(TOLERANCE) == "slower"
    assert measured(machine, 1 / 1.2).verdict(TOLERANCE) == "faster"


def test_samples_alternate_and_each_side_has_forty() -> None:
    order: list[str] = []

    def side(name: str) -> Callable[[int], list[float]]:
        return lambda count: order.extend([name] * count) or [1e-3] * count  # type: ignore[func-returns-value]

    found = interleave({name: side(name) for name in ("a", "null", "b")}, TOLERANCE)
    assert found.samples == 40
    assert order[::5][:6] == list(ORDER)
    assert list(ORDER) == list(reversed(ORDER))


def test_a_long_call_is_sampled_less_and_a_doubtful_one_more() -> None:
    assert measured(lambda s: s, 1.0, seconds=1.0).samples < 20
    assert measured(lambda s: s, 1.06).samples == 160


def test_what_the_null_copy_moved_is_no_change() -> None:
    assert Timing(1.0, 1.01, 1.1, 40).verdict(TOLERANCE) == "slower"
    assert Timing(1.0, 1.12, 1.1, 40).verdict(TOLERANCE) == "same"
    assert Timing(1.0, 0.913, 0.911, 40).verdict(TOLERANCE) == "same"
    assert Timing(1.0, 0.85, 1.1, 40).verdict(TOLERANCE) == "same"
    assert not Timing(1.0, 1.05, 1.0, 40).decided(TOLERANCE)
    assert not Timing(1.0, 1.0, 1.2, 40).decided(TOLERANCE)  # a change takes all samples
    assert Timing(1.0, 1.01, 1.02, 40).decided(TOLERANCE)


def test_a_change_must_be_there_twice() -> None:
    slow, same = Timing(1.0, 1.0, 1.2, 40), Timing(1.0, 1.0, 1.0, 40)
    assert confirmed("se", "forward ms", slow, slow, TOLERANCE).verdict == "slower"
    assert confirmed("se", "forward ms", slow, same, TOLERANCE).verdict == "same"
    late = confirmed("se", "forward ms", slow, Timing(0.5, 0.6, 0.7, 40), TOLERANCE)
    assert (late.a, late.b, late.null, late.verdict) == (500.0, 700.0, 1.2, "slower")


PLANTED = """
import time
_right = SE.forward
def _slow(self, x):
    if x.shape[1] == 48:
        raise RuntimeError("broken here")
    start = time.thread_time()
    y = _right(self, x)
    end = time.thread_time() + 0.5 * (time.thread_time() - start)
    while time.thread_time() < end:
        pass
    return y
SE.forward = _slow
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    skipped = shutil.ignore_patterns("__pycache__", "golden")
    shutil.copytree(PACKAGE, folder / "attnzoo", ignore=skipped)
    file = folder / "attnzoo" / "blocks" / "se.py"
    file.write_text(file.read_text() + PLANTED)
    return folder


@pytest.mark.slow
def test_a_slow_down_in_a_checkout_is_found(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(PACKAGE.parent), str(checkout), "se"]) == 1
    head, forward, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["row", "quantity", "A", "B", "B", "/", "A", "null", "verdict"]
    assert forward.endswith("REGRESSION slower")
    assert 1.3 < float(forward.split()[5]) < 1.8


def test_each_side_runs_its_own_code(checkout: Path) -> None:
    child = versions.Code("b", Path(sys.executable), checkout).start()
    job = Job(
        block="se",
        config={"c": 16},
        at=attnzoo.InputSize(),
        settings=Settings(),
    )
    try:
        answer = versions.load(job, {"b": child})["b"]
        assert answer["from"] == str(checkout / "attnzoo" / "__init__.py")
        assert answer["params"] == 32
        broken = replace(job, config={"c": 48})
        assert "broken" in versions.load(broken, {"b": child})["b"]["error"]
    finally:
        child.close()


@pytest.mark.parametrize(
    ("word", "message"),
    [("no-such-revision", "no file, no folder and no git revision"), (".", "a folder without")],
)
def test_a_side_that_is_nothing(
    word: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message), versions.opened(word):
        pass


def verdicts(a: list[Result], b: list[Result]) -> dict[str, tuple[str, bool]]:
    found = files.compare(a, b, tolerance=0.1)
    return {c.quantity: (c.verdict, c.regression) for c in found if c.verdict != "same"}


def test_files_counts_are_exact_memory_has_a_tolerance_and_times_a_quarter() -> None:
    old = row()
    assert verdicts([old], [old]) == {}
    assert verdicts([old], [replace(old, latency_forward=slower(old.latency_forward, 1.24))]) == {}
    late = replace(old, latency_forward=slower(old.latency_forward, 1.26))
    assert verdicts([old], [late]) == {"latency_forward_ms": ("slower", True)}
    assert verdicts([late], [old]) == {"latency_forward_ms": ("faster", False)}
    new = row(params=513, macs=500, memory_saved_bytes=1099)
    assert verdicts([old], [new]) == {
        "params": ("more", False),
        "macs": ("less", False),
        "memory_saved_bytes": ("more", False),
    }
    large = verdicts([old], [row(memory_saved_bytes=1101)])
    assert large["memory_saved_bytes"] == ("larger", True)


def test_files_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"differ in threads: .'2'. and .'1'.\. --allow"):
        files.compare([row()], [row(threads=1)], tolerance=0.1)
    with pytest.raises(ValueError, match="no row in common"):
        files.compare([row()], [row("cbam")], tolerance=0.1)
    with pytest.raises(ValueError, match="B has two rows of se"):
        files.compare([row()], [row(), row()], tolerance=0.1)


def test_files_a_block_that_fails_is_a_regression(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {k: v for k, v in row().identity().items() if k not in ("schema", "block")}
    failed = Failure(block="se", error="RuntimeError: no", known=known)
    for name, result in (("a", row()), ("b", failed)):
        (tmp_path / name).mkdir()
        store.append(store.file_of(tmp_path / name), result)
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    out = capsys.readouterr().out
    assert "REGRESSION fails" in out
    assert "times only past 25%" in out
    assert cli.main(["compare", str(tmp_path / "b"), str(tmp_path / "a")]) == 0
