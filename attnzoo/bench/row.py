"""The row of the benchmark, as it is written, read back, compared and shown.

A field names the column that shows it, so that records, tables and pages agree.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

from ..registry import Layout
from ..validation.types import Total, fit

SCHEMA = 3
EXPLAINED = 0.3  # the least fraction of a time at which a bound explains it
Mode = Literal["eager", "compiled", "cudagraph"]
Roof = Literal["bandwidth", "compute", "launch"]
PlainRow = Mapping[str, Any]  # a row as JSON has it, perhaps with its ranks


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    means: str
    format: Callable[[PlainRow, str], str]  # of a row and a key
    priority: int = 0  # in a terminal: 1 is shown first; 0 only when asked for
    key: str = ""

    @property
    def numeric(self) -> bool:
        """Whether its cells are numbers, which are aligned to the right."""
        return self.format not in (word, shapes, keywords)

    def text(self, row: PlainRow) -> str:
        """A row's cell, empty if the row has no value."""
        return "" if row.get(self.key) is None else self.format(row, self.key)


def column(*parts: Any) -> Any:
    """A field of a record that has a column."""
    return field(metadata={"column": Column(*parts)})


def word(row: PlainRow, key: str) -> str:
    """The value unchanged."""
    return str(row[key])


def count(row: PlainRow, key: str) -> str:
    """Three digits and a unit: `806k`."""
    return amount(row[key])


def ratio(row: PlainRow, key: str) -> str:
    """Two digits after the point."""
    return f"{row[key]:.2f}"


def percent(row: PlainRow, key: str) -> str:
    """A fraction: `12 %`."""
    return f"{100 * row[key]:.0f} %"


def size(row: PlainRow, key: str) -> str:
    """A number of bytes: `806 kB`."""
    return f"{amount(row[key], ' ')}B"


def time(row: PlainRow, key: str) -> str:
    """Milliseconds, after ~ if no second round of samples reached them."""
    settled = row.get(f"{key.removesuffix('_ms')}_settled", True)
    return f"{'' if settled else '~'}{row[key]:.3g}"


def bound(row: PlainRow, key: str) -> str:
    """A bound and the fraction of the time that it explains, `none` if that is small."""
    text = f"{row[key.removesuffix('_fraction')]} {percent(row, key)}"
    return text if row[key] >= EXPLAINED else f"none ({text})"


def fvcore(row: PlainRow, key: str) -> str:
    """fvcore's multiply-adds, and those that it misses."""
    missed = [f"{name} {amount(n)}" for name, n in (row.get("fvcore_misses") or {}).items()]
    return amount(row[key]) + " without " * bool(missed) + ", ".join(missed)


def keywords(row: PlainRow, key: str) -> str:
    """A configuration: `c=64, reduction=16`."""
    return ", ".join(f"{name}={value!r}" for name, value in row[key].items())


def shapes(row: PlainRow, key: str) -> str:
    """The shapes of the inputs: `2x64x14x14`, joined by plus signs, lists in brackets."""

    def sides(value: Any) -> str:
        if value and isinstance(value[0], list):
            return "[" + ", ".join(map(sides, value)) + "]"
        return "x".join(map(str, value)) or "number"

    return " + ".join(map(sides, row[key].values()))


def amount(value: float, gap: str = "") -> str:
    """Three digits and a unit of 1000s: `806k`; `gap` separates the two."""
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{gap}{unit}"
        value /= 1000
    return f"{value:.3g}{gap}T"


class Checked:
    """Base of a dataclass whose values are checked against their annotations."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, fit(name, getattr(self, name), hint))


@dataclass(frozen=True)
class Latency(Checked):
    """Milliseconds of one call on the whole batch; on the CPU, in CPU time of the thread."""

    best: float  # the minimum, which varies least from run to run
    p20: float
    median: float
    p80: float
    samples: int
    disturbed: int  # samples that were preempted, or discarded because the device throttled
    settled: bool  # two rounds of samples reached the same minimum


@dataclass(frozen=True, kw_only=True)
class Identity(Checked):
    """What was measured, where and with which versions; it identifies a row."""

    schema: int = SCHEMA
    block: str
    layout: Layout = column("layout", "layout of the input", word)
    shape: dict[str, Any] = column("shape", "shapes of the inputs, batch first", shapes)
    config: dict[str, Any] = column("config", "the block's arguments", keywords)
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
        """The fields of `Identity`, which a job, its row and its failure share."""
        return {item.name: getattr(self, item.name) for item in fields(Identity)}


@dataclass(frozen=True, kw_only=True)
class Row(Identity):
    """What one block costs at one size on one machine; counts are per sample of the batch."""

    latency_forward: Latency = column("forward ms", "eval mode, inference_mode: minimum", time, 2)
    latency_training: Latency = column("fwd+bwd ms", "forward and backward, train mode", time, 2)
    macs: Total = column("MACs", "multiply-adds of a forward pass as published", count, 3)
    params: Total = column("params", "parameters", count, 3)
    memory_saved_bytes: Total = column("saved", "kept by autograd between passes", size, 5)
    roof_forward: Roof  # the highest of the lower bounds on the time
    roof_forward_fraction: float = column("roof", "highest bound, and its share", bound, 4)
    bytes_forward: Total = column("min bytes", "of inputs, outputs and parameters", size, 6)
    memory_peak_bytes: Total | None = column("peak", "of a training step; CUDA only", size, 5)
    latency_forward_device: Latency | None = column("device ms", "on the device alone", time, 3)
    latency_training_device: Latency | None = column("device fwd+bwd ms", "likewise", time)
    latency_forward_cold: Latency | None = column("cold ms", "with an empty L2 cache", time, 4)
    latency_training_cold: Latency | None = column("cold fwd+bwd ms", "likewise", time)
    compile_seconds: float | None = column("compile s", "of the first calls, in no time", ratio, 4)
    roof_training: Roof
    roof_training_fraction: float = column("roof fwd+bwd", "the same for training", bound)
    macs_executed: Total = column("MACs run", "multiply-adds of the timed forward call", count)
    macs_executed_training: Total = column("MACs run fwd+bwd", "the same for training", count)
    elementwise: Total = column("elementwise", "elementwise operations and reductions", count)
    elementwise_training: Total
    fvcore_macs: Total | None = column("fvcore", "multiply-adds by fvcore, and its misses", fvcore)
    fvcore_misses: dict[str, Any]  # multiply-adds, by operator
    bytes_training: Total = column("min bytes fwd+bwd", "the same with all gradients", size)
    roof_bandwidth: float  # bytes per second of a copy of the row's size
    roof_macs: float  # multiply-adds per second of a large matrix product in this dtype
    roof_launch_us: float  # microseconds of one operator call on a single number
    checked_error: float  # the largest relative error of outputs and gradients in this run
    checked_limit: float
    load: float  # load average per processor when the row was measured
    throttle: str | None = column("throttle", "why samples were discarded; CUDA only", word)

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values, with each latency as several keys."""
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


def row_columns() -> list[Column]:
    """The columns of the fields, the row's own before those of its identity."""
    shown = [item for item in fields(Row) if "column" in item.metadata]
    shown.sort(key=lambda item: item.name in Identity.__dataclass_fields__)
    keys = [item.name + "_ms" * (item.name in LATENCIES) for item in shown]
    return [replace(i.metadata["column"], key=k) for i, k in zip(shown, keys, strict=True)]


def from_json(data: Mapping[str, Any]) -> Result:
    """The row or failure that `to_json` wrote.

    Raises ValueError if the schema version, the fields or a value are not this version's.
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
    except (TypeError, ValueError) as error:  # an unknown or missing field, or a wrong value
        raise ValueError(f"row of {data.get('block')}: {error}") from None
