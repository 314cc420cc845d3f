"""Two versions side by side: three processes, A, B and a second A, each block's passes in turn."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...registry import find
from ...testing.inputs import make_inputs
from ..child import Child, ChildError
from ..job import Job
from .interleave import Timing, interleave
from .sides import Code

PASSES = {"forward": "forward", "training": "fwd+bwd"}
TIMEOUT = 300.0  # seconds for one answer


@dataclass(frozen=True)
class Moved:
    """One pass of one block on both sides, or why it could not be measured there."""

    block: str
    what: str
    timing: Timing | None
    verdict: str  # same, slower, faster; fails (in B), works (again), fails still
    error: str = ""

    @property
    def regression(self) -> bool:
        """Whether B is worse than A."""
        return self.verdict in ("slower", "fails")


def measure(
    jobs: Sequence[Job], a: Code, b: Code, tolerance: float, progress: Callable[[str], None]
) -> Iterator[Moved]:
    """Measure every pass of every job, in order, and measure apparent changes again.

    The second measurement runs in new processes, so that a difference in the memory layout of one
    process is not reported as a change.
    """
    found: list[Moved] = []
    with _processes(a, b) as sides:
        for number, job in enumerate(jobs, 1):
            progress(f"{job.block} ({number} of {len(jobs)})")
            found += _measure(job, sides, tolerance)
    doubtful = {one.block for one in found if one.verdict in ("slower", "faster")}
    again: dict[tuple[str, str], Moved] = {}
    if doubtful:
        with _processes(a, b) as sides:
            for job in jobs:
                if job.block in doubtful:
                    progress(f"{job.block} once more")
                    again |= {(m.block, m.what): m for m in _measure(job, sides, tolerance)}
    for one in found:
        yield confirmed(one, again.get((one.block, one.what)), tolerance)


def confirmed(first: Moved, second: Moved | None, tolerance: float) -> Moved:
    """Both measurements combined: the least times, and a change only if both report it."""
    if second is None or first.timing is None or second.timing is None:
        return first
    one, two = first.timing, second.timing
    least = min(one.a, two.a), min(one.null, two.null), min(one.b, two.b)
    both = Timing(*least, samples=one.samples + two.samples)
    verdicts = {first.verdict, second.verdict, both.verdict(tolerance)}
    verdict = verdicts.pop() if len(verdicts) == 1 else "same"
    return Moved(first.block, first.what, both, verdict)


@contextlib.contextmanager
def _processes(a: Code, b: Code) -> Iterator[dict[str, Child]]:
    sides = {"a": a.start(), "null": a.start(), "b": b.start()}
    try:
        yield sides
    finally:
        for side in sides.values():
            side.close()


def _measure(job: Job, sides: Mapping[str, Child], tolerance: float) -> list[Moved]:
    with tempfile.TemporaryDirectory(prefix="attnzoo-") as folder:
        loaded = {name: _load(job, side, Path(folder)) for name, side in sides.items()}
    errors = {name: answer["error"] for name, answer in loaded.items() if "error" in answer}
    if errors:
        kinds = {("a" in errors, "b" in errors)}
        verdict = "fails still" if (True, True) in kinds else "works" if "a" in errors else "fails"
        return [Moved(job.block, "", None, verdict, errors.get("b") or errors.get("a") or "")]
    found = []
    for name, title in PASSES.items():
        calls = min(answer["calls"][name] for answer in loaded.values())
        bursts = {key: _burst(side, name, calls) for key, side in sides.items()}
        timing = interleave(bursts, tolerance)
        found.append(Moved(job.block, title, timing, timing.verdict(tolerance)))
    if loaded["a"]["params"] != loaded["b"]["params"]:
        counts = f"{loaded['a']['params']:,} -> {loaded['b']['params']:,}"
        found.append(Moved(job.block, "params", None, "differs", counts))
    return found


def _load(job: Job, side: Child, folder: Path) -> dict[str, Any]:
    entry, settings = find(job.block), job.settings
    inputs = folder / "inputs.pt"
    torch.save(make_inputs(entry, entry.bind(**job.config), job.at), inputs)
    question = {
        "do": "load",
        "block": job.block,
        "config": job.to_json()["config"],
        "inputs": str(inputs),
        **{key: value for key, value in asdict(settings).items() if key in ("device", "dtype")},
        "threads": settings.threads,
    }
    return side.ask(question, TIMEOUT)


def _burst(side: Child, name: str, calls: int) -> Callable[[int], list[float]]:
    def burst(samples: int) -> list[float]:
        question = {"do": "burst", "pass": name, "calls": calls, "seconds": 0.0, "least": samples}
        answer = side.ask(question, TIMEOUT)
        if "error" in answer:
            raise ChildError(answer["error"])
        seconds: list[float] = answer["seconds"]
        return seconds

    return burst
