"""Result files: one line of JSON per row, written to disk as soon as the row is measured.

A run appends to `bench.jsonl`; each rank of `torchrun` after the first has a file of its own, and
the files are joined at the end. If a run is killed while writing, its incomplete last line is
ignored, and removed by the next run.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .job import Job
from .row import Result, Row, from_json

NAME = "bench.jsonl"
PREVIOUS = "previous"  # where a fresh run sets an earlier run's files aside
MACHINE = ("device_name", "torch", "python", "attnzoo")  # rows of one file agree in these


def key(one: Job | Result) -> str:
    """An identity without the device's index: ranks share the rows over devices of one kind."""
    known = one.identity()
    return json.dumps(known | {"device": _kind(known)}, sort_keys=True)


def file_of(folder: Path, rank: int = 0) -> Path:
    """Where a rank keeps its rows."""
    return folder / (f"bench.rank{rank}.jsonl" if rank else NAME)


def append(file: Path, row: Result) -> None:
    """Add a row, on disk when this returns."""
    with file.open("ab") as stream:
        stream.write(_line(row))
        stream.flush()
        os.fsync(stream.fileno())


def load(path: Path) -> list[Result]:
    """The rows of a result file (JSON lines, or a list), or of all those in a folder.

    Raises ValueError, with the file's name, where it is damaged or of another schema version.
    """
    if path.is_dir():
        found = _files(path) or [path / "bench.json"]
        return arranged([], [row for file in found for row in load(file)])
    if not path.exists():
        raise ValueError(f"{path} does not exist; `attnzoo bench --out DIR` writes {NAME}")
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
    try:
        items = [text] if text.lstrip()[:1] == "[" else whole.splitlines()
        values = [json.loads(item) for item in items]
        rows = [row for value in values for row in (value if isinstance(value, list) else [value])]
        return [from_json(dict(row)) for row in rows]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no result file: {error}") from None


def begin(folder: Path, wanted: Mapping[str, Any], resume: bool) -> list[Result]:
    """Ready the folder for rows; returns those that stay.

    Args:
        wanted: machine and versions of this run, as the fields of a row.
        resume: keep the folder's rows; else they are set aside in `previous`.

    Raises ValueError where `resume` finds another machine's or version's rows.
    """
    files = _files(folder)
    if not resume:
        for file in [*files, *folder.glob("bench.json")]:
            (folder / PREVIOUS).mkdir(exist_ok=True)
            file.replace(folder / PREVIOUS / file.name)
        return []
    rows = load(folder) if files else []
    for known in (row.identity() for row in rows):
        for name in MACHINE[_kind(known) != _kind(wanted) :]:  # another device has another name
            if known.get(name, wanted[name]) != wanted[name]:
                raise ValueError(
                    f"--resume: {folder / NAME} has rows with {name}={known[name]!r}, here it is "
                    f"{wanted[name]!r}; name another folder, or leave --resume out to start anew"
                )
    join(folder, rows)
    return rows


def join(folder: Path, rows: Iterable[Result]) -> None:
    """Put rows in place of all that the ranks have written, in one step."""
    replace(file_of(folder), b"".join(map(_line, rows)))
    for file in _files(folder):
        if file != file_of(folder):
            file.unlink()


def replace(file: Path, content: bytes) -> None:
    """Put `content` in place of `file` in one step, after it has reached the disk."""
    part = file.with_name(f".{file.name}.part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


def arranged(order: Iterable[str], rows: Iterable[Result]) -> list[Result]:
    """One row for each key: rows of other runs first, then those of this one in its order.

    Of two rows with one key the later stands, but a failure never takes a measured row's place.
    """
    found: dict[str, Result] = {}
    for row in rows:
        if isinstance(row, Row) or not isinstance(found.get(key(row)), Row):
            found[key(row)] = row
    wanted = {name: found.pop(name) for name in dict.fromkeys(order) if name in found}
    return [*found.values(), *wanted.values()]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder to one run; the system frees the lock of a run that dies.

    Raises ValueError where another run writes into it.
    """
    import filelock

    try:
        with filelock.FileLock(folder / ".bench.lock", timeout=0):
            yield
    except filelock.Timeout:
        raise ValueError(
            f"--out {folder} is in use by another run; wait for it or name another folder"
        ) from None


def _files(folder: Path) -> list[Path]:
    return [*folder.glob(NAME), *sorted(folder.glob("bench.rank*.jsonl"))]


def _line(row: Result) -> bytes:
    return json.dumps(row.to_json()).encode() + b"\n"


def _kind(known: Mapping[str, Any]) -> str:
    return str(known.get("device", "")).split(":")[0]
