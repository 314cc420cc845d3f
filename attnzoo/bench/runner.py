"""A whole run of `attnzoo bench`: its rows one after the other, in this process or in others."""

import contextlib
import datetime
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, cast

import torch.distributed as dist

from . import run, store
from .job import Job
from .row import Result, Row

RANKS_APART = datetime.timedelta(days=7)  # a rank may be hours ahead of another


def perform_apart(job: Job, timeout: float | None, imports: Sequence[str]) -> Result:
    """The job's row from a process of its own, ended after so many seconds.

    Whatever happens to that process becomes a failure of the job.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_row, args=(job, imports, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            return job.failed(f"stopped: no answer within {timeout:g} seconds")
        return cast(Result, receiver.recv())
    except EOFError:
        process.join()
        return job.failed(f"stopped: its process ended with status {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send_row(job: Job, imports: Sequence[str], sender: Connection) -> None:
    for name in imports:
        import_module(name)
    sender.send(run.perform(job))


class Ranks(NamedTuple):
    """The processes of one run that torchrun started; without it, this one alone."""

    rank: int = 0
    size: int = 1
    local: int = 0

    def device(self, asked: str) -> str:
        """This rank's device: each has its own of a kind, unless one is asked for by index."""
        if self.size == 1 or asked.startswith("cpu") or ":" in asked:
            return asked
        return f"{asked}:{self.local}"

    def wait(self) -> None:
        """Until every rank is here. Raises RuntimeError where one has died."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks that torchrun's environment names; a request to end is an interrupt."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    dist.init_process_group("gloo", timeout=RANKS_APART)
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

    Rows are on disk as they come where there is a folder, which then keeps every rank's.
    """
    found: list[Result] = []
    if folder is not None and here.rank == 0:
        found = store.begin(folder, jobs[0].known(), resume)
    here.wait()
    if folder is not None and here.rank:
        found = store.load(folder) if store.file_of(folder).exists() else []
    done = {store.key(row) for row in found if isinstance(row, Row)}
    order = [store.key(job) for job in jobs]
    left = [job for name, job in zip(order, jobs, strict=True) if name not in done]
    share, stopped = left[here.rank :: here.size], ""
    try:
        for number, job in enumerate(share, 1):
            progress(f"{job.block} ({number} of {len(share)})")
            found.append(perform(job))
            if folder is not None:
                store.append(store.file_of(folder, here.rank), found[-1])
        here.wait()
    except KeyboardInterrupt:
        stopped = "interrupted"
    except RuntimeError as error:
        stopped = f"a rank has ended early ({error})"
    progress("")
    if folder is not None and here.rank == 0:
        found = store.arranged(order, [*found, *store.load(folder)])
        store.join(folder, found)
    return store.arranged(order, found), stopped
