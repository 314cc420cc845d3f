"""Result files: one line of JSON per row, written to disk as soon as the row is measured.

A run appends to `bench.jsonl`; each rank of `torchrun` after the first has a file of its own, and
the files are joined at the end. If a run is killed while writing, its incomplete last line is
ignored, and removed by the next run.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from .job import Job
from .row import Result, Row, from_json

NAME = "bench.jsonl"
PREVIOUS = "previous"  # the folder that a new run moves an earlier run's files to


def key(one: Job | Result) -> str:
    """An identity without the device's index, since ranks share rows over devices of one kind."""
    known = one.identity()
    kind = str(known.get("device", "")).split(":")[0]
    return json.dumps(known | {"device": kind}, sort_keys=True)


def file_of(folder: Path, rank: int = 0) -> Path:
    """The file of a rank's rows."""
    return folder / (f"bench.rank{rank}.jsonl" if rank else NAME)


def append(file: Path, row: Result) -> None:
    """Add a row; it is on disk when this returns."""
    _write(file, "ab", _line(row))


def load(path: Path) -> list[Result]:
    """The rows of a result file (JSON lines, or a list), or of all those in a folder.

    Raises ValueError, with the file's name, if it is damaged or of another schema version.
    """
    if path.is_dir():
        found = _files(path) or [path / "bench.json"]
        return arranged([], [row for file in found for row in load(file)])
    if not path.exists():
        raise ValueError(f"{path} does not exist; `attnzoo bench --out DIR` writes {NAME}")
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
    try:
        is_list = text.lstrip().startswith("[")
        values = json.loads(text) if is_list else map(json.loads, whole.splitlines())
        return [from_json(dict(value)) for value in values]
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no result file: {error}") from None


def begin(folder: Path, resume: bool) -> list[Result]:
    """The rows that a run starts with: with `resume` those of the folder, else none.

    Without `resume`, files of an earlier run are moved to `previous`.
    """
    if resume:
        rows = load(folder) if _files(folder) else []
        join(folder, rows)
        return rows
    for file in [*_files(folder), *folder.glob("bench.json")]:
        (folder / PREVIOUS).mkdir(exist_ok=True)
        file.replace(folder / PREVIOUS / file.name)
    return []


def join(folder: Path, rows: Iterable[Result]) -> None:
    """Replace all that the ranks have written by these rows, atomically."""
    replace(file_of(folder), b"".join(map(_line, rows)))
    for file in _files(folder):
        if file != file_of(folder):
            file.unlink()


def replace(file: Path, content: bytes) -> None:
    """Replace the content of a file atomically."""
    part = file.with_name(f".{file.name}.part")
    _write(part, "wb", content)
    part.replace(file)


def arranged(order: Iterable[str], rows: Iterable[Result]) -> list[Result]:
    """One row for each key: first those that `order` does not name, then those it does.

    Of two rows with the same key the later is kept, but a failure never replaces a measured row.
    """
    found: dict[str, Result] = {}
    for row in rows:
        if isinstance(row, Row) or not isinstance(found.get(key(row)), Row):
            found[key(row)] = row
    wanted = {name: found.pop(name) for name in dict.fromkeys(order) if name in found}
    return [*found.values(), *wanted.values()]


def _write(file: Path, mode: str, content: bytes) -> None:
    """Write, and return when the content has reached the disk."""
    with file.open(mode) as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _files(folder: Path) -> list[Path]:
    return [*folder.glob(NAME), *sorted(folder.glob("bench.rank*.jsonl"))]


def _line(row: Result) -> bytes:
    return json.dumps(row.to_json()).encode() + b"\n"
