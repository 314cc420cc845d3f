"""Two processes that wait for work: starting them costs seconds, a check a hundredth of one."""

import importlib
import multiprocessing
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD = 2
PATIENCE = 120.0  # seconds; a check takes less than one, a start some on a busy machine


class RankError(AssertionError):
    """What went wrong on which rank, with the traceback from there."""


class Ranks:
    """`WORLD` processes joined by gloo, started when first needed and again after a failure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts = 0
        self.ends: list[Connection] = []
        self.processes: list[Any] = []

    def run(
        self, check: Callable[..., None], *args: Any, module: str = "", patience: float = PATIENCE
    ) -> None:
        """Call `check(*args)` on every rank; raises `RankError` where one fails, dies or hangs.

        `module` is imported first: the one that registers the block under test.
        """
        if not self.processes:
            self._start()
        for end in self.ends:
            end.send((module, check, args))
        failures = list(self._answers(patience))
        if failures:
            self.close()  # the other rank may be waiting inside a collective
            raise RankError(f"{check.__name__}{args}: " + "\n".join(failures))

    def close(self) -> None:
        """End the processes."""
        for process, end in zip(self.processes, self.ends, strict=True):
            process.kill()
            process.join()
            end.close()
        self.processes, self.ends = [], []

    def _start(self) -> None:
        self.starts += 1
        meeting = (self.folder / f"meeting{self.starts}").as_uri()
        context = multiprocessing.get_context("spawn")
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, meeting, theirs), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.ends.append(ours)

    def _answers(self, patience: float) -> Iterator[str]:
        """A sentence for every rank that did not succeed; the first one ends the waiting."""
        waiting = dict(zip(self.ends, range(WORLD), strict=True))
        while waiting:
            ready = wait(list(waiting), patience)
            if not ready:
                ranks = " and ".join(map(str, waiting.values()))
                yield f"rank {ranks} gave no answer within {patience:g} s"
                return
            for end in ready:
                rank = waiting.pop(end)  # type: ignore[call-overload]
                try:
                    failure = end.recv()  # type: ignore[union-attr]
                except EOFError:
                    self.processes[rank].join()
                    failure = f"the process ended with exit code {self.processes[rank].exitcode}"
                if failure:
                    yield f"rank {rank}: {failure}"
                    patience = 2.0  # what the others have to say comes at once or never


@contextmanager
def ranks(folder: Path) -> Iterator[Ranks]:
    """The processes for the length of a test module."""
    pair = Ranks(folder)
    try:
        yield pair
    finally:
        pair.close()


def _serve(rank: int, meeting: str, end: Connection) -> None:
    """What each process does: one check after the other, until its parent closes the pipe."""
    torch.set_num_threads(1)
    _warnings_are_errors()
    dist.init_process_group(
        "gloo",
        init_method=meeting,
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=PATIENCE),
    )
    while True:
        try:
            module, check, args = end.recv()
        except EOFError:
            sys.exit()
        try:
            torch.manual_seed(0)
            if module:
                importlib.import_module(module)
            check(*args)
        except Exception:
            end.send(traceback.format_exc())
        else:
            end.send(None)


def _warnings_are_errors() -> None:
    warnings.simplefilter("error")
    # what a block returns may be a view; fully_shard warns that adding to it in place is not safe
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
