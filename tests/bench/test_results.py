"""Result files: the schema they meet, what is refused, and what survives a killed run."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from attnzoo.bench import results
from attnzoo.bench.row import Failure, Row

from synthetic import row

VALIDATOR = Draft202012Validator(results.schema())


def failure(**known: object) -> Failure:
    return Failure(block="cbam", error="ValueError: why", known=known)


def test_the_schema_is_one_and_describes_every_field() -> None:
    Draft202012Validator.check_schema(results.schema())
    measured = results.schema()["$defs"]["measured"]
    assert set(measured["required"]) == row().to_json().keys()
    identity = results.schema()["$defs"]["identity"]["properties"]
    assert set(measured["required"]) == {*measured["properties"], *identity}


def test_rows_meet_the_schema_and_come_back_equal(tmp_path: Path) -> None:
    rows = [row(), failure(), failure(threads=2, config={"c": 8}), row("cbam", mode="compiled")]
    results.save(tmp_path / "bench.json", rows)
    VALIDATOR.validate(json.loads((tmp_path / "bench.json").read_text()))
    assert results.load(tmp_path) == results.load(tmp_path / "bench.json") == rows


@pytest.mark.parametrize("name", [item.name for item in fields(Row) if item.name != "block"])
def test_a_wrong_field_is_refused(name: str, tmp_path: Path) -> None:
    """The reader and the schema refuse the same: a missing field and one of a wrong type."""
    good = row().to_json()
    for key in (k for k in good if k.removesuffix("_ms") == name or k == name):
        for bad in ({k: v for k, v in good.items() if k != key}, good | {key: object.__name__ * 2}):
            if key in ("layout", "device", "device_name", "torch", "python", "attnzoo", "throttle"):
                bad = bad | {key: 3}
            assert not VALIDATOR.is_valid([bad]), key
            (tmp_path / "bench.json").write_text(json.dumps([bad]))
            with pytest.raises(ValueError, match=r"bench\.json"):
                results.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged or no result file"),
        ('[{"schema": 1, "blo', "is damaged or no result file"),
        ("{}", "must be a list of rows"),
        ("[1]", "must be a list of rows"),
        ('[{"schema": 2, "block": "se"}]', "schema=2 must be 1"),
        ('[{"block": "se"}]', "schema=None must be 1"),
        ('[{"schema": 1, "block": "se"}]', "'layout' is a required property"),
        ('[{"schema": 1, "error": "ValueError: why"}]', "'block' is a required property"),
        ('[{"schema": NaN}]', "NaN is no JSON"),
        ("[" * 100_000, "is damaged or no result file"),
    ],
)
def test_what_is_no_result_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        results.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bench\.json does not exist"):
        results.load(tmp_path)


def test_a_row_stands_once_in_the_order_of_the_run() -> None:
    a, b, c = row("a"), row("b"), row("c")
    failed = Failure(block="b", error="OutOfMemoryError: no", known=known(b))
    order = [results.key(r) for r in (a, b, c, a)]
    assert results.key(failed) == results.key(b)
    assert results.arranged(order, [c, failed, a, b]) == [a, b, c]
    assert results.arranged(order, [b, failed, a]) == [a, b]
    assert results.arranged(order[:1], [c, a]) == [c, a]


def test_ranks_share_rows_over_devices_of_one_kind() -> None:
    assert results.key(row(device="cuda:0")) == results.key(row(device="cuda:3"))
    assert results.key(row(device="cpu")) != results.key(row(device="cuda:0"))


@pytest.mark.parametrize(
    "changed", [{"torch": "2.0"}, {"python": "3.9"}, {"attnzoo": "9"}, {"device_name": "another"}]
)
def test_resuming_elsewhere_is_refused(changed: dict[str, str], tmp_path: Path) -> None:
    results.save(tmp_path / "bench.json", [row(**changed)])
    (name,) = changed
    with pytest.raises(ValueError, match=f"--resume: .*{name}="):
        results.resumed(tmp_path, vars(row()))


def test_resuming_finds_the_rows_of_ranks_that_died(tmp_path: Path) -> None:
    results.save(tmp_path / "bench.json", [row("a")])
    results.save(results.of_rank(tmp_path, 1), [row("b")])
    assert results.resumed(tmp_path, vars(row())) == [row("a"), row("b")]
    other = row("c", device="cuda:0", device_name="a GPU")
    assert results.resumed(tmp_path, vars(other)) == [row("a"), row("b")]  # two devices in one file


def test_a_fresh_run_sets_an_earlier_one_aside(tmp_path: Path) -> None:
    results.save(tmp_path / "bench.json", [row()])
    results.set_aside(tmp_path)
    assert not (tmp_path / "bench.json").exists()
    assert results.load(tmp_path / "previous") == [row()]


def test_one_folder_takes_one_run(tmp_path: Path) -> None:
    with (
        results.locked(tmp_path),
        pytest.raises(ValueError, match="is in use by another run"),
        results.locked(tmp_path),
    ):
        raise AssertionError("two runs hold one folder")
    with results.locked(tmp_path):
        assert (tmp_path / ".bench.lock").exists()


WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from attnzoo.bench import results
from synthetic import row
folder = Path({folder!r})
moments = random.Random(0)
for _ in range(8):
    writer = os.fork()
    while writer == 0:
        with results.locked(folder):
            for first in range(10**6):
                results.save(folder / "bench.json", [row(c=first + i) for i in range(1, 40)])
    while not (folder / "bench.json").exists():
        time.sleep(0.01)
    time.sleep(moments.uniform(0.05, 0.2))
    os.kill(writer, signal.SIGKILL)
    assert os.waitpid(writer, 0)[1] == signal.SIGKILL
    found = [r.config["c"] for r in results.load(folder)]
    assert found == list(range(found[0], found[0] + 39)), found
    print("whole", flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file_and_no_lock(tmp_path: Path) -> None:
    """The writers are forks of one process, so that torch is imported once."""
    script = WRITERS.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["whole"] * 8, done.stderr
    with results.locked(tmp_path):
        results.save(tmp_path / "bench.json", [row()])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bench.lock", "bench.json"]


def known(measured: Row) -> dict[str, object]:
    identity = json.loads(measured.identity())
    return {name: value for name, value in identity.items() if name not in ("schema", "block")}
