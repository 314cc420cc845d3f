"""The columns of every table: what they are called, what they mean, how a row fills them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PlainRow = Mapping[str, Any]  # a row as JSON has it, perhaps with its ranks
CONDITIONS = ("device", "device_name", "dtype", "autocast", "channels_last", "mode", "threads")
VERSIONS = ("torch", "python", "attnzoo")
BUSY = 1.5  # of processes that want a processor, for each there is
EXPLAINED = 0.3  # of a time, below which a bound does not explain it


@dataclass(frozen=True)
class Column:
    """One column: `value` is what it sorts by, None where the row has none; `text` what shows."""

    title: str
    means: str
    value: Callable[[PlainRow], Any]
    text: Callable[[PlainRow], str]
    number: bool = True
    brief: int = 0  # in a terminal: the order in which columns get room; 0 only when asked for
    short: Callable[[PlainRow], str] | None = None  # what shows there, in place of `text`

    def filled(self, rows: Sequence[PlainRow]) -> bool:
        """Whether any of the rows has something here."""
        return any(self.value(row) is not None for row in rows)


def columns(rows: Sequence[PlainRow]) -> list[Column]:
    """The columns these rows need: none that is empty, none that only says what all share."""
    good = [row for row in rows if "error" not in row]
    first = _word("block", "name of the block; `attnzoo show NAME` prints more", 1)
    extra = [_word(key, "condition of the measurement", 3) for key in differing(good)]
    found = [c for c in (first, *extra, *COLUMNS) if c.filled(good)]
    return found if good else [first]


def differing(rows: Sequence[PlainRow]) -> list[str]:
    """The conditions and versions in which the rows differ."""
    return [
        key
        for key in (*CONDITIONS, *VERSIONS)
        if len({json.dumps(row.get(key)) for row in rows}) > 1
    ]


def label(row: PlainRow, rows: Sequence[PlainRow]) -> str:
    """The row's name among `rows`: its block, and in what it differs from the others."""
    words = [str(row["block"])]
    for key in differing(rows):
        value = row.get(key)
        words += [str(value)] if isinstance(value, str) else [f"{key}={value}"]
    mates = [other for other in rows if other["block"] == row["block"]]
    for key, value in row["config"].items():
        if any(mate["config"].get(key) != value for mate in mates):
            words.append(f"{key}={value}")
    twins = [mate for mate in mates if mate["config"] == row["config"]]
    if any(twin["shape"] != row["shape"] for twin in twins):
        words.append(shapes(row["shape"]))
    return " ".join(words)


def config(row: PlainRow) -> str:
    """The configuration as keywords."""
    return ", ".join(f"{key}={value!r}" for key, value in row["config"].items())


def shapes(of: Mapping[str, Any]) -> str:
    """The shapes of named inputs: `2x64x14x14`, several joined by plus signs, lists in brackets."""
    return " + ".join(map(_sides, of.values()))


def amount(value: float, gap: str = "") -> str:
    """Three digits and a unit of 1000s: `806k`; `gap` stands between the two."""
    for unit in ("", "k", "M", "G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{gap}{unit}"
        value /= 1000
    return f"{value:.3g}{gap}T"


def _sides(value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[" + ", ".join(_sides(item) for item in value) + "]"
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _column(
    title: str,
    key: str,
    means: str,
    show: Callable[[Any], str],
    brief: int = 0,
    number: bool = True,
) -> Column:
    """A column of one field."""

    def text(row: PlainRow) -> str:
        return "" if row.get(key) is None else show(row[key])

    return Column(title, means, lambda row: row.get(key), text, number, brief)


def _word(key: str, means: str, brief: int = 0) -> Column:
    return _column(key.replace("_", " "), key, means, str, brief, number=False)


def _whole(title: str, key: str, means: str, brief: int = 0) -> Column:
    column = _column(title, key, means, "{:,}".format)
    return Column(
        title, means, column.value, column.text, True, brief, _column("", key, "", amount).text
    )


def _bytes(title: str, key: str, means: str, brief: int = 0) -> Column:
    return _column(title, key, means, lambda value: f"{amount(value, ' ')}B", brief)


def _time(title: str, name: str, means: str, brief: int = 0) -> Column:
    def short(row: PlainRow) -> str:
        if row.get(f"{name}_ms") is None:
            return ""
        return f"{'' if row.get(f'{name}_settled', True) else '~'}{row[f'{name}_ms']:.3g}"

    def text(row: PlainRow) -> str:
        if row.get(f"{name}_p20_ms") is None:
            return short(row)
        return f"{short(row)} ({row[f'{name}_p20_ms']:.3g} to {row[f'{name}_p80_ms']:.3g})"

    return Column(title, means, lambda row: row.get(f"{name}_ms"), text, True, brief, short)


def _roof(title: str, name: str, means: str, brief: int = 0) -> Column:
    def text(row: PlainRow) -> str:
        fraction = row.get(f"{name}_fraction")
        if fraction is None:
            return ""
        share = f"{row[name]} {100 * fraction:.0f} %"
        return share if fraction >= EXPLAINED else f"none ({share})"

    return Column(title, means, lambda row: row.get(f"{name}_fraction"), text, True, brief)


def _fvcore() -> Column:
    def text(row: PlainRow) -> str:
        missed = row.get("fvcore_misses") or {}
        names = ", ".join(f"{name} {amount(n)}" for name, n in missed.items())
        return amount(row["fvcore_macs"]) + f" without {names}" * bool(names)

    means = "what fvcore counts of one sample's forward pass, and the products it passes over"
    return Column("fvcore", means, lambda row: row.get("fvcore_macs"), text)


COLUMNS = (
    _column(
        "rank",
        "rank",
        "place among the rows of the same layout, shape and conditions; times "
        "within a tenth of the fastest of them share one",
        str,
        4,
    ),
    _time(
        "forward ms",
        "latency_forward",
        "the batch in eval mode under inference_mode: the least "
        "time (20th to 80th percentile); ~ where no two rounds of samples reached it",
        2,
    ),
    _time("fwd+bwd ms", "latency_training", "forward and backward in train mode", 2),
    _column(
        "/ baseline", "baseline_ratio", "the forward pass over the baseline's", "{:.2f}".format, 3
    ),
    _whole(
        "MACs",
        "macs",
        "multiply-adds of one sample's forward pass by the authors' arithmetic: "
        "convolutions, matrix products, attention; one MAC is two FLOPs",
        3,
    ),
    _whole("params", "params", "parameters", 3),
    _bytes(
        "saved",
        "memory_saved_bytes",
        "bytes that autograd keeps between forward and backward, "
        "parameters, inputs and outputs aside",
        5,
    ),
    _roof(
        "roof",
        "roof_forward",
        "the highest of three bounds (memory bandwidth, matrix rate, "
        "launching of operators) and how much of the forward pass's time it explains; none where "
        "that is below 30 %",
        4,
    ),
    _bytes(
        "min bytes",
        "bytes_forward",
        "bytes that any implementation must move in a forward pass "
        "over the batch: input, output, parameters",
        6,
    ),
    _bytes(
        "peak", "memory_peak_bytes", "most bytes that a training step holds beyond its start", 5
    ),
    _time(
        "device ms",
        "latency_forward_device",
        "the forward pass on the device alone, queued behind a blocked stream",
        3,
    ),
    _time("device fwd+bwd ms", "latency_training_device", "the same of forward and backward"),
    _time(
        "cold ms", "latency_forward_cold", "the same of the forward pass with an empty L2 cache", 4
    ),
    _time("cold fwd+bwd ms", "latency_training_cold", "the same with an empty L2 cache"),
    _column(
        "compile s",
        "compile_seconds",
        "seconds of the first, compiling calls; in none of the times",
        "{:.3g}".format,
        4,
    ),
    _roof("roof fwd+bwd", "roof_training", "the same bounds of forward and backward"),
    _column("rank fwd+bwd", "rank_training", "the same place by forward and backward", str),
    _time("train fwd ms", "latency_train_forward", "the forward pass in train mode, recorded"),
    _whole(
        "MACs run", "macs_executed", "multiply-adds of the forward call that is timed, a sample"
    ),
    _whole("MACs run fwd+bwd", "macs_executed_training", "the same of the training step"),
    _whole("elementwise", "elementwise", "elementwise and reduction operations of that call"),
    _fvcore(),
    _bytes("min bytes fwd+bwd", "bytes_training", "min bytes with the gradients of all three"),
    _word("throttle", "why samples were thrown away while timing"),
    _word("layout", "layout of the input"),
    Column(
        "shape",
        "shapes of the inputs, the batch first",
        lambda row: shapes(row["shape"]),
        lambda row: shapes(row["shape"]),
        number=False,
    ),
    Column("config", "the block's keywords", config, config, number=False),
)
