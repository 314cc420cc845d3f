"""Two versions side by side: three processes, A, B and a second A, each block's passes in turn."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...registry import find
from ...testing.inputs import arguments, leaves, make_inputs
from ..job import Job
from . import Change
from .interleave import Timing, interleave
from .sides import Code, Side

PASSES = {"forward": "forward ms", "training": "fwd+bwd ms"}


def measure(
    jobs: Sequence[Job], a: Code, b: Code, tolerance: float, progress: Callable[[str], None]
) -> Iterator[Change]:
    """Every pass of every job, in order; a block that seems to have moved is measured once more.

    The second measurement runs in new processes, so that a difference in the memory layout of one
    process is not reported as a change.
    """
    with _started(a, b) as sides:
        for number, job in enumerate(jobs, 1):
            progress(f"{job.block} ({number} of {len(jobs)})")
            loaded = _loaded(job, sides)
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
                with _started(a, b) as others:
                    second = _timed(others, _loaded(job, others), tolerance)
            for title, one, two in zip(PASSES.values(), first, second, strict=True):
                yield confirmed(job.block, title, one, two, tolerance)
            before, after = loaded["a"]["params"], loaded["b"]["params"]
            if before != after:
                verdict = "more" if after > before else "less"
                yield Change(job.block, "params", before, after, verdict)


def confirmed(block: str, title: str, one: Timing, two: Timing, tolerance: float) -> Change:
    """The least times of both measurements, and a change only if both and those report it."""
    a, null, b = (min(pair) for pair in zip(one[:3], two[:3], strict=True))
    both = Timing(a, null, b, one.samples + two.samples)
    verdicts = {timing.verdict(tolerance) for timing in (one, two, both)}
    verdict = verdicts.pop() if len(verdicts) == 1 else "same"
    return Change(block, title, 1e3 * both.a, 1e3 * both.b, verdict, null=both.drift)


@contextlib.contextmanager
def _started(a: Code, b: Code) -> Iterator[dict[str, Side]]:
    with contextlib.ExitStack() as stack:
        codes = {"a": a, "null": a, "b": b}
        yield {n: stack.enter_context(contextlib.closing(c.start())) for n, c in codes.items()}


def _loaded(job: Job, sides: Mapping[str, Side]) -> dict[str, dict[str, Any]]:
    """Each side's answer to loading the block: calls for a sample of each pass, or an error."""
    entry, settings = find(job.block), job.settings
    config = entry.bind(**job.config)
    inputs = leaves(make_inputs(entry, config, job.at), settings.computed)
    with torch.device("meta"):
        block = entry.cls(**config)
    with tempfile.TemporaryDirectory(prefix="attnzoo-") as folder:
        file = Path(folder) / "inputs.pt"
        torch.save(arguments(block, inputs), file)
        request = {
            "do": "load",
            "block": job.block,
            "config": dict(job.config),
            "inputs": str(file),
            "device": settings.device,
            "dtype": settings.dtype,
            "threads": settings.threads,
        }
        return {name: side.ask(request) for name, side in sides.items()}


def _timed(sides: Mapping[str, Side], loaded: Mapping[str, Any], tolerance: float) -> list[Timing]:
    """The least times of every pass."""

    def burst(side: Side, request: dict[str, Any], count: int) -> list[float]:
        answer = side.ask({"do": "burst", "count": count, **request})
        if "error" in answer:
            raise ChildProcessError(answer["error"])
        seconds: list[float] = answer["seconds"]
        return seconds

    found = []
    for name in PASSES:
        calls = min(answer["calls"][name] for answer in loaded.values())
        request = {"pass": name, "calls": calls}
        bursts = {key: partial(burst, side, request) for key, side in sides.items()}
        found.append(interleave(bursts, tolerance))
    return found
