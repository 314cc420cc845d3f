"""The row of the benchmark: what is written, read back and compared. Version 1."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from ..registry import Layout

SCHEMA = 1
Mode = Literal["eager", "compiled", "cudagraph"]
Roof = Literal["bandwidth", "compute", "launch"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call on the whole batch."""

    median: float
    p20: float
    p80: float
    samples: int
    pulse_us: float  # microseconds of a fixed piece of work, timed right before and after samples


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What was measured, where and with what: two rows that agree in it measure the same thing."""

    schema: int = SCHEMA
    block: str
    layout: Layout
    config: dict[str, Any]  # plain JSON values
    shape: dict[str, Any]  # input shapes by argument
    device: str
    device_name: str
    dtype: str
    autocast: bool  # float32 parameters and inputs under torch.autocast to `dtype`
    channels_last: bool
    mode: Mode
    threads: int
    torch: str
    python: str
    attnzoo: str

    def identity(self) -> str:
        """The fields of `Identity` as one line of JSON, the same for a task, its row or failure."""
        return _line({name: getattr(self, name) for name in IDENTITY})


@dataclass(frozen=True, kw_only=True)
class Row(Identity):
    """What one block costs at one size on one machine."""

    params: int
    macs: int  # multiply-adds of one sample's forward pass, by the authors' published arithmetic
    macs_executed: int  # those that run here
    elementwise: int  # elementwise and reduction operations of one sample's forward pass
    bytes_forward: int  # what any implementation must move: input, output, parameters
    bytes_training: int  # plus their gradients
    latency_forward: Latency  # eval mode under torch.inference_mode, the whole batch
    latency_train_forward: Latency  # train mode, autograd recording
    latency_training: Latency  # forward and backward in train mode
    latency_forward_cold: Latency | None  # with the L2 cache flushed before; CUDA, on request
    latency_training_cold: Latency | None
    compile_seconds: float | None  # of the first calls, apart from every latency; None when eager
    memory_saved_bytes: int  # kept by autograd between forward and backward
    memory_peak_bytes: int | None  # of a training step, above what was there before; CUDA only
    roof_bandwidth: float  # bytes per second of a copy of the row's size, measured in this run
    roof_macs: float  # multiply-adds per second of a large matrix product in this dtype
    roof_launch_us: float  # microseconds of one operator call on next to nothing
    roof_forward: Roof  # what bounds latency_forward from below
    roof_training: Roof
    roof_forward_fraction: float | None  # of that roof reached; None where launches rule
    roof_training_fraction: float | None
    checked_error: float  # largest relative error of outputs and gradients here, in this run
    checked_limit: float
    sm_clock_mhz: float | None  # median while timing; CUDA only
    throttle: str | None  # why the clock was held back, "none" where it was not; CUDA only

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values, each latency as median, percentiles and sample count."""
        row: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in LATENCIES:
                row |= {f"{item.name}{end}": getattr(value, key, None) for key, end in _ENDS}
            else:
                row[item.name] = value
        return row


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A block that could not be measured, and why."""

    block: str
    error: str
    known: Mapping[str, Any] = field(default_factory=dict)  # other fields of its identity

    def identity(self) -> str:
        """What is known of its identity as one line of JSON, equal to its task's."""
        return _line({"schema": SCHEMA, "block": self.block, **self.known})

    def to_json(self) -> dict[str, Any]:
        """The failure as plain JSON values."""
        return {"schema": SCHEMA, "block": self.block, **self.known, "error": self.error}


_ENDS = (
    ("median", "_ms"),
    ("p20", "_p20_ms"),
    ("p80", "_p80_ms"),
    ("samples", "_samples"),
    ("pulse_us", "_pulse_us"),
)
IDENTITY = tuple(f.name for f in fields(Identity))
LATENCIES = tuple(f.name for f in fields(Row) if f.type in (Latency, Latency | None))


def from_json(data: Mapping[str, Any]) -> Row | Failure:
    """The row or failure that `to_json` wrote.

    Raises ValueError where the version, or the fields, are not this version's.
    """
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema={data.get('schema')!r} must be {SCHEMA}, as this version writes")
    rest = dict(data)
    if "error" in rest:
        del rest["schema"]
        return Failure(block=rest.pop("block", ""), error=rest.pop("error"), known=rest)
    for name in LATENCIES:
        parts = {key: rest.pop(f"{name}{end}", None) for key, end in _ENDS}
        rest[name] = None if parts["median"] is None else Latency(**parts)
    names = {item.name for item in fields(Row)}
    if names != rest.keys():
        raise ValueError(f"a row has these fields too much or too few: {names ^ rest.keys()}")
    return Row(**rest)


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
