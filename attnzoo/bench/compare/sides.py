"""What `attnzoo compare` is given: a checkout, a revision, an environment or a result file."""

import contextlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..child import Child
from ..store import NAME

WORKER = Path(__file__).with_name("worker.py")


class Code(NamedTuple):
    """A version of attnzoo that can run."""

    name: str  # as it was given
    python: Path
    checkout: Path | None  # None: what that Python has installed

    def start(self) -> Child:
        """A process of it."""
        command = [str(self.python), str(WORKER), *([str(self.checkout)] if self.checkout else [])]
        return Child(command, {"PYTHONPATH": str(self.checkout or ""), "OMP_NUM_THREADS": "1"})


class Rows(NamedTuple):
    """A result file."""

    name: str
    path: Path


@contextlib.contextmanager
def opened(text: str) -> Iterator[Code | Rows]:
    """The side that a word names; a revision is unpacked for as long as it is open.

    Raises ValueError where it names nothing.
    """
    path = Path(text)
    results = (path / NAME).exists() or (path / "bench.json").exists()
    if results or (path.is_file() and path.suffix in (".json", ".jsonl")):
        yield Rows(text, path)
    elif (path / "attnzoo" / "__init__.py").exists():
        yield Code(text, Path(sys.executable), path.resolve())
    elif (path / "bin" / "python").exists():
        yield Code(text, (path / "bin" / "python").absolute(), None)
    elif path.is_file():
        yield Code(text, path.absolute(), None)
    elif path.is_dir():
        raise ValueError(
            f"{text} is a folder without {NAME}, without attnzoo/__init__.py and without "
            "bin/python: name a result folder, a checkout or an environment"
        )
    else:
        with tempfile.TemporaryDirectory(prefix="attnzoo-") as folder:
            _unpack(text, Path(folder))
            yield Code(text, Path(sys.executable), Path(folder))


def _unpack(revision: str, folder: Path) -> None:
    """Put a git revision of the checkout around the working directory into a folder."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise ValueError(
            f"{revision!r} is no file, no folder and no git revision of this folder's repository"
        )
    top = subprocess.run(
        ["git", "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True
    )
    packed = subprocess.run(
        ["git", "-C", top.stdout.strip(), "archive", found.stdout.strip(), "attnzoo"],
        capture_output=True,
        check=False,
    )
    if packed.returncode:
        raise ValueError(f"revision {revision!r} has no folder attnzoo: no version of this project")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
