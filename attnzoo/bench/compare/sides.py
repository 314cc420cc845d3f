"""What `attnzoo compare` is given: a checkout, a revision, an environment or a result file."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..store import NAME

WORKER = Path(__file__).parents[1] / "timing" / "worker.py"
TIMEOUT = 300.0  # seconds for one answer


class Side:
    """A process of one version: a line of JSON for each request, and one for its answer."""

    def __init__(self, python: Path, checkout: Path | None) -> None:
        self.process = subprocess.Popen(
            list(map(str, filter(None, (python, WORKER, checkout)))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(checkout or ""), "OMP_NUM_THREADS": "1"},
            text=True,
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return the answer; ChildProcessError without one."""
        watchdog = threading.Timer(TIMEOUT, self.process.kill)
        watchdog.start()
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(next(self.process.stdout or iter(())))
            return answer
        except (BrokenPipeError, StopIteration):
            status = self.process.wait()
            raise ChildProcessError(f"a side's process ended with status {status}") from None
        finally:
            watchdog.cancel()

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        with contextlib.suppress(BrokenPipeError):  # a request that it never read
            self.process.communicate()


class Code(NamedTuple):
    """A version of attnzoo that can run."""

    name: str  # as it was given
    python: Path
    checkout: Path | None  # None: what that Python has installed

    def start(self) -> Side:
        """A process of it."""
        return Side(self.python, self.checkout)


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
    if (path / NAME).exists() or (path.is_file() and path.suffix in (".json", ".jsonl")):
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

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], capture_output=True, check=False).stdout

    top = git("rev-parse", "--show-toplevel").decode().strip()
    packed = git("-C", top or ".", "archive", "--prefix=attnzoo/", f"{revision}:attnzoo")
    if not packed:
        raise ValueError(
            f"{revision!r} is no file, no folder and no git revision of this folder's repository "
            "with a folder attnzoo"
        )
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
