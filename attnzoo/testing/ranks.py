"""Two processes that run one check after the other, since starting them takes seconds."""

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
from typing import Any, cast

import torch
import torch.distributed as dist

WORLD = 2
TIMEOUT = 120.0  # seconds; a check takes less than one, starting a process several


class RankError(AssertionError):
    """A check failed on a rank; the message has the rank and its traceback."""


class Ranks:
    """`WORLD` processes connected by gloo, started on first use and again after a failure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starts = 0
        self.ends: list[Connection] = []
        self.processes: list[Any] = []

    def run(
        self, check: Callable[..., None], *args: Any, module: str = "", timeout: float = TIMEOUT
    ) -> None:
        """Call `check(*args)` on every rank; raises `RankError` if one fails, dies or hangs.

        `module` is imported first: the one that registers the block under test.
        """
        if not self.processes:
            self._start()
        for end in self.ends:
            end.send((module, check, args))
        failures = list(self._answers(timeout))
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

    def _answers(self, timeout: float) -> Iterator[str]:
        """A message for every rank that did not succeed; after the first, the wait is short."""
        waiting = dict(zip(self.ends, range(WORLD), strict=True))
        while waiting:
            ready = wait(list(waiting), timeout)
            if not ready:
                ranks = " and ".join(map(str, waiting.values()))
                yield f"rank {ranks} gave no answer within {timeout:g} s"
                return
            for end in ready:
                rank = waiting.pop(cast(Connection, end))
                try:
                    failure = cast(Connection, end).recv()
                except EOFError:
                    self.processes[rank].join()
                    failure = f"the process ended with exit code {self.processes[rank].exitcode}"
                if failure:
                    yield f"rank {rank}: {failure}"
                    timeout = 2.0  # other messages arrive soon or never


@contextmanager
def ranks(folder: Path) -> Iterator[Ranks]:
    """The processes, for one test module."""
    pair = Ranks(folder)
    try:
        yield pair
    finally:
        pair.close()


def _serve(rank: int, meeting: str, end: Connection) -> None:
    """The main function of a process: runs checks until its parent closes the pipe."""
    torch.set_num_threads(1)
    _warnings_are_errors()
    dist.init_process_group(
        "gloo",
        init_method=meeting,
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=TIMEOUT),
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
