"""One row of the benchmark, checked and measured; and many rows, one after the other."""

import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from .. import __version__, check
from ..registry import Entry, Extent, Layout, build, find
from . import correct, count, timing
from .timing import Latency
from .workload import call, leaves, make_inputs

DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one block costs at one size on one machine."""

    block: str
    layout: Layout
    config: dict[str, Any]
    shape: dict[str, Any]  # input shapes by argument
    device: str
    device_name: str
    dtype: str
    threads: int
    torch: str
    python: str
    attnzoo: str
    params: int
    macs: int  # multiply-adds of one sample's forward pass
    bytes_forward: int  # what any implementation must move: input, output, parameters
    bytes_training: int  # plus their gradients
    memory_saved_bytes: int  # kept by autograd between forward and backward
    memory_peak_bytes: int | None  # of a training step, above what was there before; CUDA only
    latency_forward: Latency  # inference mode, the whole batch
    latency_training: Latency  # forward and backward in train mode

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values, each latency as median, percentiles and sample count."""
        row: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Latency):
                row[f"{item.name}_ms"] = value.median
                row[f"{item.name}_p20_ms"] = value.p20
                row[f"{item.name}_p80_ms"] = value.p80
                row[f"{item.name}_samples"] = value.samples
            else:
                row[item.name] = value
        return row


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A block that could not be measured, and why."""

    block: str
    error: str

    def to_json(self) -> dict[str, Any]:
        """The failure as plain JSON values."""
        return {"block": self.block, "error": self.error}


class WrongResultError(RuntimeError):
    """A block's numbers are wrong on this device and dtype; it gets no time."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for every row of a run."""

    device: str = "cpu"
    dtype: str = "float32"
    batch: int | None = None
    size: int | tuple[int, int] | None = None
    steps: int | None = None
    min_time: float = 0.2

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {', '.join(map(repr, DTYPES))}")
        check.device("device", self.device)
        if not 0 < self.min_time < float("inf"):
            raise ValueError(f"min_time={self.min_time} must be a positive number of seconds")

    def extent(self, entry: Entry) -> Extent:
        """The entry's example extent with what was asked for instead."""
        at = entry.extent
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


def measured(
    name: str, args: tuple[Any, ...], config: Mapping[str, Any], settings: Settings
) -> Row:
    """One block with a config, checked and measured; what `attnzoo.measure` returns."""
    entry = find(name)
    given = config if config or args else entry.example
    return _row(entry, entry.bind(*args, **given), settings)


def table(
    wanted: Iterable[str], settings: Settings, c: int | None = None
) -> Iterator[Row | Failure]:
    """One row a block at its example config, with the channels and sizes given here instead.

    A block that cannot be measured becomes a `Failure`, and the run goes on.
    """
    for name in wanted:
        entry = find(name)
        config: dict[str, Any] = dict(entry.example)
        if c is not None and "c" in config:
            config["c"] = c
        try:
            yield _row(entry, entry.bind(**config), settings)
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:
            reason = str(error).split("\n", 1)[0]
            yield Failure(block=name, error=f"{type(error).__name__}: {reason}")


def _row(entry: Entry, config: dict[str, Any], settings: Settings) -> Row:
    device, dtype = settings.device, getattr(torch, settings.dtype)
    extent = settings.extent(entry)
    torch.manual_seed(0)
    block = build(entry.name, **config, device=device, dtype=dtype)
    inputs = leaves(make_inputs(entry, config, extent, device=device, dtype=dtype))
    wrong = correct.fault(entry, config, block, inputs)
    if wrong is not None:
        raise WrongResultError(f"{entry.name} is not timed: {wrong}")
    ghost = build(entry.name, **config, device="meta", dtype=dtype)
    macs = count.macs(ghost, make_inputs(entry, config, extent, device="meta", dtype=dtype))
    with torch.no_grad():
        output = call(block.eval(), inputs)
    traffic = count.traffic(block, inputs, output)
    return Row(
        block=entry.name,
        layout=config.get("layout", entry.layouts[0]),
        config=config,
        shape={
            key: [list(t.shape) for t in value] if isinstance(value, list) else list(value.shape)
            for key, value in inputs.items()
        },
        device=device,
        device_name=_device_name(device),
        dtype=settings.dtype,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        python=platform.python_version(),
        attnzoo=__version__,
        params=sum(p.numel() for p in block.parameters()),
        macs=macs,
        bytes_forward=traffic.forward,
        bytes_training=traffic.training,
        latency_forward=timing.forward(block, inputs, device, settings.min_time),
        latency_training=timing.training(block, inputs, device, settings.min_time),
        memory_saved_bytes=count.saved_bytes(block.train(), inputs),
        memory_peak_bytes=count.peak_bytes(block, inputs, device),
    )


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpus.read_text(), re.M) if cpus.exists() else []
    return str(names[0]) if names else platform.processor() or platform.machine()
