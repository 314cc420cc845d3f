"""Result files: written whole or not at all, one writer to a folder, read back with checks."""

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .row import SCHEMA, Failure, Row, from_json

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

Result = Row | Failure
NAME = "bench.json"
PREVIOUS = "previous"  # where a fresh run sets an earlier run's files aside
MACHINE = ("torch", "python", "attnzoo")  # rows of one file agree in these


def schema() -> dict[str, Any]:
    """The JSON Schema that every result file of this version meets."""
    text = (resources.files(__package__) / "schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


class Named(Protocol):
    """A task, a row or a failure."""

    def identity(self) -> str: ...


def key(item: Named) -> str:
    """Identity without the device's index: ranks share the rows over devices of one kind."""
    known = json.loads(item.identity())
    return json.dumps(known | {"device": known.get("device", "").split(":")[0]}, sort_keys=True)


def load(path: Path) -> list[Result]:
    """The rows of a result file, or of the `bench.json` in a folder.

    Raises ValueError, with the file's name, where it is damaged or of another schema version.
    """
    file = path / NAME if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"{file} does not exist; `attnzoo bench --out DIR` writes {NAME}")
    try:
        rows = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged or no result file: {error}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} is no result file: it must be a list of rows")
    try:
        return [_read(row) for row in rows]
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def save(file: Path, rows: Sequence[Result]) -> None:
    """Write the rows so that `file` is, at every moment, whole: the earlier or the new one."""
    text = json.dumps([row.to_json() for row in rows], indent=1) + "\n"
    replace(file, text.encode())


def replace(file: Path, content: bytes) -> None:
    """Put `content` in place of `file` in one step, after it has reached the disk."""
    part = file.with_name(f".{file.name}.part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)


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


def set_aside(folder: Path) -> None:
    """Move what an earlier run measured into `previous`, its ranks' rows included."""
    for file in _files(folder):
        (folder / PREVIOUS).mkdir(exist_ok=True)
        file.replace(folder / PREVIOUS / file.name)


def resumed(folder: Path, wanted: Mapping[str, Any]) -> list[Result]:
    """All rows of an interrupted run, its ranks' included, for a run of rows like `wanted`.

    Raises ValueError where they were taken on another machine or with other versions.
    """
    rows = [row for file in _files(folder) for row in load(file)]
    for row in rows:
        known = json.loads(row.identity())
        names: tuple[str, ...] = MACHINE
        if known.get("device", "").split(":")[0] == wanted["device"].split(":")[0]:
            names = ("device_name", *MACHINE)
        for name in names:
            if known.get(name, wanted[name]) != wanted[name]:
                raise ValueError(
                    f"--resume: {folder / NAME} has rows with {name}={known[name]!r}, here it is "
                    f"{wanted[name]!r}; name another folder, or leave --resume out to start anew"
                )
    return rows


def arranged(order: Iterable[str], rows: Iterable[Result]) -> list[Result]:
    """One row for each key: rows of other runs first, then those of this one in its order.

    Of two rows with one key the later stands, but a failure never takes a measured row's place.
    """
    found: dict[str, Result] = {}
    for row in rows:
        if isinstance(row, Row) or not isinstance(found.get(key(row)), Row):
            found[key(row)] = row
    wanted = [name for name in dict.fromkeys(order) if name in found]
    others = [row for name, row in found.items() if name not in wanted]
    return [*others, *(found[name] for name in wanted)]


def of_rank(folder: Path, rank: int) -> Path:
    """Where a rank keeps its rows; rank 0 merges them into its own file, `bench.json`."""
    return folder / (f"bench.rank{rank}.json" if rank else NAME)


def of_ranks(folder: Path) -> list[Path]:
    """The files of the ranks after the first, as far as there are any."""
    return sorted(folder.glob("bench.rank*.json"))


def _files(folder: Path) -> list[Path]:
    return [*folder.glob(NAME), *of_ranks(folder)]


def _read(data: dict[str, Any]) -> Result:
    """One row; what breaks the schema is refused, and a row of another version by `from_json`."""
    if data.get("schema") == SCHEMA:
        for fault in _validator().iter_errors([data]):
            where = fault.json_path.replace("$[0]", str(data.get("block")), 1)
            raise ValueError(f"{where}: {fault.message}")
    return from_json(data)


@functools.cache
def _validator() -> "Validator":
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema())


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
