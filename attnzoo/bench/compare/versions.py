"""Measures two versions side by side, in three processes: A, B and a second copy of A."""

import contextlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...registry import find
from ...testing.inputs import arguments, leaves, make_inputs
from ...testing.process import Child, ChildError
from ..job import Job
from ..store import NAME
from .interleave import Change, Timing, interleave

WORKER = Path(__file__).parents[1] / "timing" / "worker.py"
TIMEOUT = 300.0  # seconds for one answer
PASSES = {"forward": "forward ms", "training": "fwd+bwd ms"}
Sides = Mapping[str, Child]  # by the names `a`, `null` and `b`


class Code(NamedTuple):
    """A version of attnzoo that can run."""

    name: str  # as it was given
    python: Path
    checkout: Path | None  # None: what that Python has installed

    def start(self) -> Child:
        """A process of it, which runs `timing/worker.py`."""
        words = [str(word) for word in (self.python, WORKER, self.checkout) if word]
        return Child(words, {"PYTHONPATH": str(self.checkout or ""), "OMP_NUM_THREADS": "1"})


class Rows(NamedTuple):
    """A result file."""

    name: str
    path: Path


@contextlib.contextmanager
def opened(text: str) -> Iterator[Code | Rows]:
    """The side that an argument names; a git revision is unpacked while it is open.

    Raises ValueError if it names nothing.
    """
    path = Path(text)
    if (path / NAME).exists() or (path.is_file() and path.suffix in (".json", ".jsonl")):
        yield Rows(text, path)
    elif (path / "attnzoo" / "__init__.py").exists():
        yield Code(text, Path(sys.executable), path.resolve())
    elif path.is_file() or (path / "bin" / "python").exists():
        yield Code(text, (path if path.is_file() else path / "bin" / "python").absolute(), None)
    elif path.is_dir():
        raise ValueError(f"{text} is a folder without {NAME}, attnzoo/__init__.py or bin/python")
    else:
        with tempfile.TemporaryDirectory(prefix="attnzoo-") as folder:
            _unpack(text, Path(folder))
            yield Code(text, Path(sys.executable), Path(folder))


def _unpack(revision: str, folder: Path) -> None:
    """Write the package of a git revision of the working directory's repository to a folder."""

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], capture_output=True, check=False).stdout

    top = git("rev-parse", "--show-toplevel").decode().strip()
    packed = git("-C", top or ".", "archive", "--prefix=attnzoo/", f"{revision}:attnzoo")
    if not packed:
        raise ValueError(f"{revision!r} is no file, no folder and no git revision with attnzoo/")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


def measure(
    jobs: Sequence[Job], a: Code, b: Code, tolerance: float, progress: Callable[[str], None]
) -> Iterator[Change]:
    """Every pass of every job, in order; a block that seems to have changed is measured again.

    The second measurement runs in other processes, so that a difference in the memory layout of one
    process is not reported as a change.
    """
    others = None
    with contextlib.ExitStack() as stack:
        sides = stack.enter_context(_started(a, b))
        for number, job in enumerate(jobs, 1):
            progress(f"{job.block} ({number} of {len(jobs)})")
            loaded = load(job, sides)
            failed = {name: answer["error"] for name, answer in loaded.items() if "error" in answer}
            if failed:
                verdict = "fails" if "a" not in failed else "works"
                verdict = "fails still" if {"a", "b"} <= failed.keys() else verdict
                error = next(reversed(failed.values()))
                yield Change(job.block, "row", None, None, verdict, error=error)
                continue
            first = second = _timed(sides, loaded, tolerance)
            if any(timing.verdict(tolerance) != "same" for timing in first):
                progress(f"{job.block} once more")
                others = others or stack.enter_context(_started(a, b))
                second = _timed(others, load(job, others), tolerance)
            for title, one, two in zip(PASSES.values(), first, second, strict=True):
                yield confirmed(job.block, title, one, two, tolerance)
            before, after = loaded["a"]["params"], loaded["b"]["params"]
            if before != after:
                verdict = "more" if after > before else "less"
                yield Change(job.block, "params", before, after, verdict)


def confirmed(block: str, title: str, one: Timing, two: Timing, tolerance: float) -> Change:
    """The minima of both measurements, and a change only if both and their minima show it."""
    a, null, b = (min(pair) for pair in zip(one[:3], two[:3], strict=True))
    both = Timing(a, null, b, one.samples + two.samples)
    verdicts = {timing.verdict(tolerance) for timing in (one, two, both)}
    verdict = verdicts.pop() if len(verdicts) == 1 else "same"
    return Change(block, title, 1e3 * both.a, 1e3 * both.b, verdict, null=both.drift)


@contextlib.contextmanager
def _started(a: Code, b: Code) -> Iterator[Sides]:
    with contextlib.ExitStack() as stack:
        codes = {"a": a, "null": a, "b": b}
        yield {n: stack.enter_context(contextlib.closing(c.start())) for n, c in codes.items()}


def load(job: Job, sides: Sides) -> dict[str, dict[str, Any]]:
    """Load the block on every side; the answers are the calls of a sample, or an error."""
    entry, settings = find(job.block), job.settings
    config = entry.bind(**job.config)
    inputs = leaves(make_inputs(entry, config, job.at), settings.computed)
    with torch.device("meta"):
        block = entry.cls(**config)
    shared = {name: getattr(settings, name) for name in ("device", "dtype", "threads")}
    with tempfile.TemporaryDirectory(prefix="attnzoo-") as folder:
        file = str(Path(folder) / "inputs.pt")
        torch.save(arguments(block, inputs), file)
        request = {"block": job.block, "config": dict(job.config), "inputs": file, **shared}
        return {name: side.ask({"load": request}, TIMEOUT) for name, side in sides.items()}


def _timed(sides: Sides, loaded: Mapping[str, Any], tolerance: float) -> list[Timing]:
    """The minimum times of every pass."""

    def burst(side: Child, name: str, calls: int, count: int) -> list[float]:
        answer = side.ask({"pass": name, "calls": calls, "count": count}, TIMEOUT)
        if "error" in answer:
            raise ChildError(answer["error"])
        seconds: list[float] = answer["seconds"]
        return seconds

    found = []
    for name in PASSES:
        calls = min(answer["calls"][name] for answer in loaded.values())
        bursts = {key: partial(burst, side, name, calls) for key, side in sides.items()}
        found.append(interleave(bursts, tolerance))
    return found
