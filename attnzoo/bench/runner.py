"""A whole run of `attnzoo bench`: its rows one after the other, in this process or in others."""

import contextlib
import datetime
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from . import run, store
from .child import Child, ChildError, row_process
from .job import Job
from .row import Result, Row, from_json

RANKS_APART = datetime.timedelta(days=7)  # a rank may be hours ahead of another


@dataclass
class Performer:
    """Performs jobs: here, or with a timeout or a process a row in another process."""

    timeout: float | None = None
    isolate: bool = False
    imports: Sequence[str] = ()
    _child: Child | None = field(default=None, init=False)

    def perform(self, job: Job) -> Result:
        """The job's row or failure, whatever happens to the process that made it."""
        if self.timeout is None and not self.isolate:
            return run.perform(job)
        self._child = self._child or row_process(self.imports)
        try:
            return from_json(self._child.ask(job.to_json(), self.timeout))
        except ChildError as error:
            self._child = None
            return job.failed(f"stopped: {error}")
        finally:
            if self.isolate:
                self.close()

    def close(self) -> None:
        """End the other process."""
        if self._child is not None:
            self._child.close()
        self._child = None


@dataclass(frozen=True)
class Ranks:
    """The processes of one run that torchrun started; without it, this one alone."""

    rank: int = 0
    size: int = 1
    local: int = 0

    def device(self, asked: str) -> str:
        """This rank's device. Raises ValueError where several ranks would share one by index."""
        if self.size == 1 or torch.device(asked).type == "cpu":
            return asked
        if torch.device(asked).index is not None:
            kind = torch.device(asked).type
            raise ValueError(
                f"--device {asked} is one device; with torchrun say --device {kind}, "
                "and each rank takes its own"
            )
        return f"{asked}:{self.local}"

    def wait(self) -> None:
        """Until every rank is here. Raises RuntimeError where one has died."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def ranks() -> Iterator[Ranks]:
    """The ranks that torchrun's environment names; a request to end is an interrupt."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    dist.init_process_group("gloo", timeout=RANKS_APART)
    try:
        yield Ranks(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    finally:
        signal.signal(signal.SIGTERM, before)
        dist.destroy_process_group()


def run_all(
    jobs: Sequence[Job],
    folder: Path | None,
    here: Ranks,
    performer: Performer,
    resume: bool,
    progress: Callable[[str], None],
) -> tuple[list[Result], str]:
    """This rank's share of the jobs; all rows in the order of the jobs, and why it stopped early.

    Rows are on disk as they come where there is a folder, which then keeps every rank's.
    """
    order = [store.key(job.identity()) for job in jobs]
    found: list[Result] = []
    if folder is not None and here.rank == 0:
        found = store.begin(folder, jobs[0].known(), resume)
    here.wait()
    if folder is not None and here.rank:
        found = store.load(folder) if store.file_of(folder).exists() else []
    done = {store.key(row.identity()) for row in found if isinstance(row, Row)}
    left = [job for name, job in zip(order, jobs, strict=True) if name not in done]
    stopped = ""
    try:
        for number, job in enumerate(left[here.rank :: here.size], 1):
            progress(f"{job.block} ({number} of {len(left[here.rank :: here.size])})")
            found.append(performer.perform(job))
            if folder is not None:
                store.append(store.file_of(folder, here.rank), found[-1])
        here.wait()
    except KeyboardInterrupt:
        stopped = "interrupted"
    except RuntimeError as error:
        stopped = f"a rank has ended early ({error})"
    finally:
        performer.close()
        progress("")
    if folder is not None and here.rank == 0:
        found = store.arranged(order, [*found, *store.load(folder)])
        store.join(folder, found)
    return store.arranged(order, found), stopped
