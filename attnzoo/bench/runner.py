"""A whole run of `attnzoo bench`: its rows one after the other, in this process or in others."""

import contextlib
import datetime
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from ..testing.process import ChildError, python_process, serve
from . import run, store
from .job import Job
from .row import Result, Row, from_json

LONGEST_WAIT = datetime.timedelta(days=7)  # a rank may finish hours before another


def perform_apart(job: Job, timeout: float | None, imports: Sequence[str]) -> Result:
    """The job's row from a process of its own, which is ended after so many seconds.

    Whatever happens to that process becomes a failure of the job.
    """
    child = python_process("from attnzoo.bench import runner; runner.serve_rows()")
    try:
        return from_json(child.ask({"job": job.to_json(), "imports": list(imports)}, timeout))
    except ChildError as error:
        return job.failed(f"stopped: {error}")
    finally:
        child.close()


def serve_rows() -> None:
    """Answer jobs with rows, in the process that `perform_apart` starts."""

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        for name in request["imports"]:
            import_module(name)
        return run.perform(Job.from_json(request["job"])).to_json()

    serve(answer)


class Ranks(NamedTuple):
    """The processes of one run that torchrun started; without it, only this one."""

    rank: int = 0
    size: int = 1
    local: int = 0

    def device(self, asked: str) -> str:
        """This rank's device: one of its own, unless one is named by index."""
        alone = self.size == 1 or asked.startswith("cpu") or ":" in asked
        return asked if alone else f"{asked}:{self.local}"

    def wait(self) -> None:
        """Wait for every rank. Raises RuntimeError if one has died."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks that torchrun's environment names; SIGTERM interrupts."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    finally:
        dist.destroy_process_group()


def run_all(
    jobs: Sequence[Job],
    folder: Path | None,
    here: Ranks,
    perform: Callable[[Job], Result],
    resume: bool,
    progress: Callable[[str], None],
) -> tuple[list[Result], str]:
    """This rank's share of the jobs; all rows in the order of the jobs, and why it stopped early.

    With a folder, each row is on disk as soon as it is measured, and rank 0 joins all ranks' rows.
    """
    found: list[Result] = []
    if folder and here.rank == 0:
        found = store.begin(folder, resume)
    here.wait()
    if folder and here.rank and store.file_of(folder).exists():
        found = store.load(store.file_of(folder))
    done = {store.key(row) for row in found if isinstance(row, Row)}
    order = {store.key(job): job for job in jobs}
    left = [job for name, job in order.items() if name not in done]
    share, stopped = left[here.rank :: here.size], ""
    here.wait()
    try:
        for number, job in enumerate(share, 1):
            progress(f"{job.block} ({number} of {len(share)})")
            found.append(perform(job))
            if folder:
                store.append(store.file_of(folder, here.rank), found[-1])
        here.wait()
    except KeyboardInterrupt:
        stopped = "interrupted"
    except RuntimeError as error:
        stopped = f"a rank has ended early ({error})"
    progress("")
    if folder and here.rank == 0:
        found += store.load(folder)
        store.join(folder, store.arranged(order, found))
    return store.arranged(order, found), stopped
