"""One run over the processes that torchrun starts: each takes a share of the rows."""

import contextlib
import datetime
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=7)  # a rank may be hours ahead of another; a dead one shows


@dataclass(frozen=True)
class Group:
    """The processes of one run; without torchrun, this one alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def share(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; where it fails, the other ranks leave quietly."""
        if self.size == 1:
            return make()
        box: list[Any] = [None]
        try:
            if self.rank == 0:
                box = [(make(),)]
        finally:
            dist.broadcast_object_list(box, src=0)
        if box[0] is None:
            raise SystemExit(2)
        value: T = box[0][0]
        return value

    def wait(self) -> None:
        """Until every rank is here. Raises RuntimeError where one has died."""
        if self.size > 1:
            dist.barrier()

    def device(self, asked: str) -> str:
        """This rank's device. Raises ValueError where several ranks would share one by index."""
        if self.size == 1 or torch.device(asked).type == "cpu":
            return asked
        if torch.device(asked).index is not None:
            raise ValueError(
                f"--device {asked} is one device; with torchrun say "
                f"--device {torch.device(asked).type}, and each rank takes its own"
            )
        return f"{asked}:{self.local_rank}"


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun's environment names, over gloo; a request to end is an interrupt."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group()
        return
    here = {name: int(os.environ[name.upper()]) for name in ("local_rank", "rank")}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Group(size=size, **here)
    finally:
        signal.signal(signal.SIGTERM, before)
        dist.destroy_process_group()
