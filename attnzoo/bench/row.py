"""The row of the benchmark: what is written, read back and compared. Version 2."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from ..registry import Layout
from .checked import Checked, annotations

SCHEMA = 2
Mode = Literal["eager", "compiled", "cudagraph"]
MODES: tuple[Mode, ...] = get_args(Mode)
Roof = Literal["bandwidth", "compute", "launch"]


@dataclass(frozen=True)
class Latency(Checked):
    """Milliseconds of one call on the whole batch; on the CPU, those that the thread itself ran."""

    best: float  # the least of all samples: the headline, the figure that repeats from run to run
    p20: float
    median: float
    p80: float
    samples: int
    disturbed: int  # of them, that the system interrupted, or the device's clock held back
    settled: bool  # two rounds of samples reached the same least time


@dataclass(frozen=True, kw_only=True)
class Identity(Checked):
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
        """The fields of `Identity` as one line of JSON, the same for a job, its row or failure."""
        return _line({name: getattr(self, name) for name in IDENTITY})


@dataclass(frozen=True, kw_only=True)
class Row(Identity):
    """What one block costs at one size on one machine. Work is that of one sample of the batch."""

    params: int
    macs: int  # multiply-adds of a forward pass, by the authors' published arithmetic
    macs_executed: int  # those of the forward call that is timed
    macs_executed_training: int  # those of the training step that is timed
    elementwise: int  # elementwise and reduction operations of the forward call that is timed
    elementwise_training: int
    fvcore_macs: int | None  # what fvcore counts of the forward pass; None without fvcore
    fvcore_misses: dict[str, Any]  # multiply-adds that it passes over, by operator
    bytes_forward: int  # what any implementation must move for the batch: input, output, parameters
    bytes_training: int  # plus their gradients
    latency_forward: Latency  # eval mode under torch.inference_mode
    latency_train_forward: Latency  # train mode, autograd recording
    latency_training: Latency  # forward and backward in train mode
    latency_forward_device: Latency | None  # what the device itself works; CUDA only
    latency_training_device: Latency | None
    latency_forward_cold: Latency | None  # the same behind a flushed L2 cache, on request
    latency_training_cold: Latency | None
    compile_seconds: float | None  # of the first calls, apart from every latency; None when eager
    memory_saved_bytes: int  # kept by autograd between forward and backward
    memory_peak_bytes: int | None  # of a training step, above what was there before; CUDA only
    roof_bandwidth: float  # bytes per second of a copy of the row's size, measured in this run
    roof_macs: float  # multiply-adds per second of a large matrix product in this dtype
    roof_launch_us: float  # microseconds of one operator call on next to nothing
    roof_forward: Roof  # the highest of the bounds from below
    roof_forward_fraction: float  # of latency_forward that it explains
    roof_training: Roof
    roof_training_fraction: float
    checked_error: float  # largest relative error of outputs and gradients here, in this run
    checked_limit: float
    load: float  # processes that wanted a processor, for each there is, when the row was measured
    sm_clock_mhz: float | None  # median while timing; CUDA only
    throttle: str | None  # why samples were thrown away, "none" where none was; CUDA only

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values, the parts of each latency beside each other."""
        row: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in LATENCIES:
                row |= {f"{item.name}{end}": getattr(value, key, None) for key, end in _ENDS}
            else:
                row[item.name] = value
        return row


@dataclass(frozen=True, kw_only=True)
class Failure(Checked):
    """A block that could not be measured, and why."""

    block: str
    error: str
    known: dict[str, Any] = field(default_factory=dict)  # other fields of its identity

    def identity(self) -> str:
        """What is known of its identity as one line of JSON, equal to its job's."""
        return _line({"schema": SCHEMA, "block": self.block, **self.known})

    def to_json(self) -> dict[str, Any]:
        """The failure as plain JSON values."""
        return {"schema": SCHEMA, "block": self.block, **self.known, "error": self.error}


Result = Row | Failure
_ENDS = [(item.name, "_ms" if item.name == "best" else f"_{item.name}") for item in fields(Latency)]
_ENDS = [(k, f"{end}_ms" if k in ("p20", "median", "p80") else end) for k, end in _ENDS]
IDENTITY = tuple(item.name for item in fields(Identity))
LATENCIES = tuple(name for name in annotations(Row) if name.startswith("latency_"))


def from_json(data: Mapping[str, Any]) -> Result:
    """The row or failure that `to_json` wrote.

    Raises ValueError where the version, the fields or a value are not this version's.
    """
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema={data.get('schema')!r} must be {SCHEMA}, as this version writes")
    rest = dict(data)
    try:
        if "error" in rest:
            del rest["schema"]
            return Failure(block=rest.pop("block", ""), error=rest.pop("error"), known=rest)
        for name in LATENCIES:
            parts = {key: rest.pop(f"{name}{end}", None) for key, end in _ENDS}
            rest[name] = None if parts["best"] is None else Latency(**parts)
        return Row(**rest)
    except TypeError as error:  # a field too much or too few, or of another kind
        raise ValueError(f"row of {data.get('block')}: {error}") from None


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
