"""The row of the benchmark: what is written, read back, compared and shown. Version 2.

A field names the column that shows it, so that records, tables and pages say the same of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

from ..registry import Layout
from ..validation.types import Total, fit
from .columns import (
    Column,
    bound,
    column,
    keywords,
    number,
    quoted,
    shapes,
    size,
    time,
    whole,
    word,
)

SCHEMA = 2
Mode = Literal["eager", "compiled", "cudagraph"]
Roof = Literal["bandwidth", "compute", "launch"]


class Checked:
    """Base of a dataclass that fits its values to their annotations, or refuses them in words."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, fit(name, getattr(self, name), hint))


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
    layout: Layout = column("layout", "layout of the input", word)
    shape: dict[str, Any] = column("shape", "shapes of the inputs, the batch first", shapes)
    config: dict[str, Any] = column("config", "the block's keywords", keywords)
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

    def identity(self) -> dict[str, Any]:
        """The fields of `Identity`, the same for a job, its row and its failure."""
        return {item.name: getattr(self, item.name) for item in fields(Identity)}


@dataclass(frozen=True, kw_only=True)
class Row(Identity):
    """What one block costs at one size on one machine. Work is that of one sample of the batch."""

    latency_forward: Latency = column(
        "forward ms", "eval mode, inference_mode: least time (20th to 80th percentile)", time, 2
    )
    latency_training: Latency = column("fwd+bwd ms", "forward and backward in train mode", time, 2)
    macs: Total = column("MACs", "multiply-adds of a forward pass as published", whole, 3)
    params: Total = column("params", "parameters", whole, 3)
    memory_saved_bytes: Total = column(
        "saved", "kept by autograd until backward, but parameters, inputs and outputs", size, 5
    )
    roof_forward: Roof  # the highest of the bounds from below
    roof_forward_fraction: float = column(
        "roof", "the highest bound and the share of the forward time it explains", bound, 4
    )
    bytes_forward: Total = column(
        "min bytes", "what any implementation must move: input, output, parameters", size, 6
    )
    memory_peak_bytes: Total | None = column(
        "peak", "most bytes that a training step holds beyond its start; CUDA only", size, 5
    )
    latency_forward_device: Latency | None = column(
        "device ms", "the forward pass on the device alone, behind a blocked stream", time, 3
    )
    latency_training_device: Latency | None = column(
        "device fwd+bwd ms", "the same of forward and backward", time
    )
    latency_forward_cold: Latency | None = column(
        "cold ms", "the same of the forward pass with an empty L2 cache", time, 4
    )
    latency_training_cold: Latency | None = column(
        "cold fwd+bwd ms", "the same of forward and backward with an empty L2 cache", time
    )
    compile_seconds: float | None = column(
        "compile s", "seconds of the first, compiling calls; in none of the times", number, 4
    )
    roof_training: Roof
    roof_training_fraction: float = column("roof fwd+bwd", "the bound of training", bound)
    latency_train_forward: Latency = column("train fwd ms", "forward, train mode, recorded", time)
    macs_executed: Total = column("MACs run", "multiply-adds of the timed forward call", whole)
    macs_executed_training: Total = column("MACs run fwd+bwd", "of the training step", whole)
    elementwise: Total = column("elementwise", "elementwise operations and reductions", whole)
    elementwise_training: Total
    fvcore_macs: Total | None = column("fvcore", "fvcore's count, and what it misses", quoted)
    fvcore_misses: dict[str, Any]  # multiply-adds that it passes over, by operator
    bytes_training: Total = column("min bytes fwd+bwd", "with the gradients of all three", size)
    roof_bandwidth: float  # bytes per second of a copy of the row's size, measured in this run
    roof_macs: float  # multiply-adds per second of a large matrix product in this dtype
    roof_launch_us: float  # microseconds of one operator call on next to nothing
    checked_error: float  # largest relative error of outputs and gradients here, in this run
    checked_limit: float
    load: float  # processes that wanted a processor, for each there is, when the row was measured
    sm_clock_mhz: float | None  # median while timing; CUDA only
    throttle: str | None = column("throttle", "why samples were thrown away; CUDA only", word)

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values, the parts of each latency beside each other."""
        row: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in LATENCIES:
                row |= {f"{item.name}{end}": getattr(value, key, None) for key, end in ENDS.items()}
            else:
                row[item.name] = value
        return row


@dataclass(frozen=True, kw_only=True)
class Failure(Checked):
    """A block that could not be measured, and why."""

    block: str
    error: str
    known: dict[str, Any] = field(default_factory=dict)  # other fields of its identity

    def identity(self) -> dict[str, Any]:
        """What is known of its identity, equal to its job's."""
        return {"schema": SCHEMA, "block": self.block, **self.known}

    def to_json(self) -> dict[str, Any]:
        """The failure as plain JSON values."""
        return {**self.identity(), "error": self.error}


Result = Row | Failure
LATENCIES = tuple(item.name for item in fields(Row) if item.name.startswith("latency_"))
ENDS = {"best": "_ms", "p20": "_p20_ms", "median": "_median_ms", "p80": "_p80_ms"}
ENDS |= {key: f"_{key}" for key in ("samples", "disturbed", "settled")}


def columns() -> list[Column]:
    """The columns that fields have, the row's own before those of its identity."""
    own = [item for item in fields(Row) if "column" in item.metadata]
    own.sort(key=lambda item: item.name in Identity.__dataclass_fields__)
    return [
        replace(item.metadata["column"], key=item.name + "_ms" * (item.name in LATENCIES))
        for item in own
    ]


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
            parts = {key: rest.pop(f"{name}{end}", None) for key, end in ENDS.items()}
            rest[name] = None if parts["best"] is None else Latency(**parts)
        return Row(**rest)
    except (TypeError, ValueError) as error:  # a field too much or too few, or of another kind
        raise ValueError(f"row of {data.get('block')}: {error}") from None
