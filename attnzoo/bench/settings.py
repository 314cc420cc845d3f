"""What is asked of a run: device, precision, mode and sizes; refused in words where impossible."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import get_args

import torch

from ..registry import Entry, InputSize
from ..validation import check
from .row import Mode

DTYPES = ("float64", "float32", "bfloat16", "float16")
MOST_THREADS = 1024  # past a system's own limit OpenMP ends the process, with no error to catch


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for every row of a run."""

    device: str = "cpu"
    dtype: str = "float32"
    autocast: bool = False
    channels_last: bool = False
    mode: Mode = "eager"
    threads: int | None = None
    cold: bool = False
    batch: int | None = None
    size: int | tuple[int, int] | None = None
    steps: int | None = None
    min_time: float = 0.2

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {', '.join(map(repr, DTYPES))}")
        check.choice("mode", self.mode, get_args(Mode))
        check.device("device", self.device)
        if not 0 < self.min_time < float("inf"):
            raise ValueError(f"min_time={self.min_time} must be a positive number of seconds")
        if self.kind == "meta":
            raise ValueError("device='meta' computes nothing; take one that does, such as 'cpu'")
        if self.threads is not None:
            check.positive(threads=self.threads)
            if self.threads > MOST_THREADS:
                raise ValueError(f"threads={self.threads} must be at most {MOST_THREADS}")
        if self.autocast and self.dtype not in ("bfloat16", "float16"):
            raise ValueError(
                f"autocast=True needs dtype='bfloat16' or 'float16', not {self.dtype!r}"
            )
        if self.kind != "cuda" and (self.cold or self.mode == "cudagraph"):
            asked = "cold=True" if self.cold else "mode='cudagraph'"
            raise ValueError(f"{asked} needs a CUDA device, such as 'cuda', not {self.device!r}")

    @property
    def kind(self) -> str:
        """The kind of device: `cpu`, `cuda`, ..."""
        return torch.device(self.device).type

    @property
    def stored(self) -> torch.dtype:
        """Of parameters and inputs: float32 under autocast."""
        return torch.float32 if self.autocast else self.computed

    @property
    def computed(self) -> torch.dtype:
        """Of the arithmetic."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def precision(self) -> AbstractContextManager[object]:
        """What a forward pass runs under: autocast where asked for."""
        return torch.autocast(self.kind, self.computed) if self.autocast else nullcontext()

    def input_size(self, entry: Entry) -> InputSize:
        """The entry's example extent with what was asked for instead."""
        at = entry.input_size
        if self.size is not None:
            height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
            at = at._replace(height=height, width=width)
            if entry.layouts[0] == "sequence" and isinstance(self.size, int):
                at = at._replace(steps=self.size)
        if self.batch is not None:
            at = at._replace(batch=self.batch)
        if self.steps is not None:
            at = at._replace(steps=self.steps)
        for axis, value in at._asdict().items():
            if value < 1:
                raise ValueError(f"{axis}={value} must be at least 1")
        return at
