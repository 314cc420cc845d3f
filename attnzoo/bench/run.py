"""One row of the benchmark, measured; and many rows, one after the other."""

import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..registry import Entry, Extent, Layout, build, find
from . import count, timing
from .timing import Latency
from .workload import call, make_inputs, tensors

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
    params: int
    macs: int  # multiply-adds of one sample's forward pass
    bytes_forward: int  # what any implementation must move: input, output, parameters
    bytes_training: int  # plus their gradients
    saved_bytes: int  # kept by autograd between forward and backward
    forward: Latency  # inference mode of the whole batch
    training: Latency  # forward and backward in train mode

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return asdict(self)


def measure(
    name: str,
    *args: int,
    device: str = "cpu",
    dtype: str = "float32",
    batch: int | None = None,
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    min_time: float = 0.2,
    **config: Any,
) -> Row:
    """Measure one block: one row of the benchmark.

    Args:
        name: a name of `attnzoo.names()`.
        *args: the channels `c`, by position.
        device: `"cpu"`, `"cuda"` or another torch device.
        dtype: one of `DTYPES`; parameters and inputs are cast to it.
        batch, size, steps: batch size; image side or (height, width); number of time steps (for
            a sequence, `size` too). Default: the entry's example.
        min_time: seconds spent on each of the two timings.
        **config: the block's keywords; with none, the entry's example config.

    Raises:
        ValueError, TypeError: as `build`, or a device or dtype that does not exist here.
    """
    entry = find(name)
    settings = dict(config) if config or args else dict(entry.example)
    bound = entry.bind(*args, **settings)
    return measure_entry(
        entry,
        bound,
        _extent(entry, batch, size, steps),
        device=device,
        dtype=dtype,
        min_time=min_time,
    )


def measure_entry(
    entry: Entry,
    config: dict[str, Any],
    extent: Extent,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    min_time: float = 0.2,
) -> Row:
    """As `measure`, of an entry with a bound config at an extent."""
    kind = _dtype(dtype)
    _device(device)
    torch.manual_seed(0)
    block = build(entry.name, **config, device=device, dtype=kind)
    inputs = make_inputs(entry, config, extent, device=device, dtype=kind)
    for tensor in tensors(inputs):
        tensor.requires_grad_(tensor.is_floating_point())
    ghost = build(entry.name, **config, device="meta", dtype=kind)
    macs = count.macs(ghost, make_inputs(entry, config, extent, device="meta", dtype=kind))
    with torch.no_grad():
        output = call(block.eval(), inputs)
    traffic = count.traffic(block, inputs, output)
    forward = timing.forward(block, inputs, device, min_time)
    block.train()
    saved = count.saved_bytes(block, inputs)
    training = timing.training(block, inputs, device, min_time)
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
        dtype=dtype,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        params=sum(p.numel() for p in block.parameters()),
        macs=macs,
        bytes_forward=traffic.forward,
        bytes_training=traffic.training,
        saved_bytes=saved,
        forward=forward,
        training=training,
    )


def table(
    wanted: Iterable[str],
    *,
    device: str = "cpu",
    dtype: str = "float32",
    c: int | None = None,
    batch: int | None = None,
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    min_time: float = 0.2,
) -> Iterator[Row]:
    """One row a block at its example config, with the channels and sizes given here instead."""
    for name in wanted:
        entry = find(name)
        config: dict[str, Any] = dict(entry.example)
        if c is not None and "c" in config:
            config["c"] = c
        yield measure_entry(
            entry,
            entry.bind(**config),
            _extent(entry, batch, size, steps),
            device=device,
            dtype=dtype,
            min_time=min_time,
        )


def _extent(
    entry: Entry,
    batch: int | None,
    size: int | tuple[int, int] | None,
    steps: int | None,
) -> Extent:
    at = entry.extent
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        at = at._replace(height=height, width=width)
        if entry.layouts[0] == "sequence" and isinstance(size, int):
            at = at._replace(steps=size)
    if batch is not None:
        at = at._replace(batch=batch)
    if steps is not None:
        at = at._replace(steps=steps)
    for axis, value in at._asdict().items():
        if value < 1:
            raise ValueError(f"{axis}={value} must be at least 1")
    return at


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} must be one of {', '.join(map(repr, DTYPES))}")
    kind: torch.dtype = getattr(torch, name)
    return kind


def _device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"device={device!r} cannot be used here: {reason}") from None


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
