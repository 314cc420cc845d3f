"""The columns of every table: what they are called, what they mean, how a row fills them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PlainRow = Mapping[str, Any]  # a row of bench.json, perhaps with its ranks
CONDITIONS = ("device", "device_name", "dtype", "autocast", "channels_last", "mode", "threads")
VERSIONS = ("torch", "python", "attnzoo")


@dataclass(frozen=True)
class Column:
    """One column: `value` is what it sorts by, None where the row has none; `text` what shows."""

    title: str
    means: str
    value: Callable[[PlainRow], Any]
    text: Callable[[PlainRow], str]
    number: bool = True
    brief: bool = True  # shown in a terminal too
    short: Callable[[PlainRow], str] | None = None  # what shows there, in place of `text`

    def filled(self, rows: Sequence[PlainRow]) -> bool:
        """Whether any of the rows has something here."""
        return any(self.value(row) is not None for row in rows)


def columns(rows: Sequence[PlainRow]) -> list[Column]:
    """The columns these rows need: none that is empty, none that only says what all share."""
    good = [row for row in rows if "error" not in row]
    first = _word("block", "name of the block; `attnzoo show NAME` tells more")
    extra = [_word(key, "condition of the measurement") for key in differing(good)]
    if _several_configs(good):
        extra.append(Column("config", "the block's keywords", config, config, number=False))
    found = [c for c in (_rank("rank"), first, *extra, *COLUMNS) if c.filled(good)]
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
        words.append(shape(row))
    return " ".join(words)


def config(row: PlainRow) -> str:
    """The configuration as keywords."""
    return ", ".join(f"{key}={value!r}" for key, value in row["config"].items())


def shape(row: PlainRow) -> str:
    """The input shapes: `2x64x14x14`, several joined by plus signs, lists in brackets."""
    return shapes(row["shape"])


def shapes(of: Mapping[str, Any]) -> str:
    """The shapes of named inputs in one text."""
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


def _several_configs(rows: Sequence[PlainRow]) -> bool:
    return len({(row["block"], config(row)) for row in rows}) > len({row["block"] for row in rows})


def _word(key: str, means: str, brief: bool = True) -> Column:
    def text(row: PlainRow) -> str:
        return "" if row.get(key) is None else str(row[key])

    return Column(key.replace("_", " "), means, lambda row: row.get(key), text, False, brief)


def _whole(title: str, key: str, means: str, brief: bool = True) -> Column:
    def text(row: PlainRow) -> str:
        return "" if row.get(key) is None else f"{row[key]:,}"

    return Column(title, means, lambda row: row.get(key), text, brief=brief)


def _bytes(title: str, key: str, means: str, brief: bool = True) -> Column:
    def text(row: PlainRow) -> str:
        return "" if row.get(key) is None else amount(row[key])

    return Column(title, means, lambda row: row.get(key), text, brief=brief)


def _time(title: str, name: str, means: str, brief: bool = True) -> Column:
    def text(row: PlainRow) -> str:
        if row.get(f"{name}_ms") is None:
            return ""
        median, p20, p80 = (row[f"{name}{end}"] for end in ("_ms", "_p20_ms", "_p80_ms"))
        return f"{median:.3g} ({p20:.3g} to {p80:.3g})"

    def short(row: PlainRow) -> str:
        if row.get(f"{name}_ms") is None:
            return ""
        half = (row[f"{name}_p80_ms"] - row[f"{name}_p20_ms"]) / 2
        return f"{row[f'{name}_ms']:.3g} ±{half / row[f'{name}_ms']:.0%}"

    return Column(title, means, lambda row: row.get(f"{name}_ms"), text, brief=brief, short=short)


def _roof(title: str, name: str, means: str, brief: bool = True) -> Column:
    def text(row: PlainRow) -> str:
        fraction = row.get(f"{name}_fraction")
        if fraction is None:
            return "launch overhead" if row.get(name) == "launch" else str(row.get(name) or "")
        return f"{row[name]} {100 * fraction:.2g} %"

    def value(row: PlainRow) -> Any:
        return None if row.get(name) is None else row.get(f"{name}_fraction") or 0.0

    return Column(title, means, value, text, brief=brief)


def _rank(key: str, title: str = "rank", brief: bool = True) -> Column:
    return Column(
        title,
        "place among the rows of the same layout, shape and conditions; blocks whose p20 to p80 "
        "intervals overlap, directly or in a chain, share one",
        lambda row: row.get(key),
        lambda row: str(row.get(key, "")),
        brief=brief,
    )


COLUMNS = (
    _word("layout", "layout of the input"),
    Column("shape", "shapes of the inputs, the batch first", shape, shape, number=False),
    _whole("params", "params", "parameters"),
    _whole(
        "MACs",
        "macs",
        "multiply-adds of one sample's forward pass by the authors' arithmetic: convolutions, "
        "matrix products, attention; one MAC is two FLOPs",
    ),
    _bytes(
        "min bytes",
        "bytes_forward",
        "what any implementation must move in a forward pass over the batch: input, output, "
        "parameters",
    ),
    _time(
        "forward ms",
        "latency_forward",
        "the batch in eval mode under inference_mode: median (20th to 80th percentile)",
    ),
    _time("forward cold ms", "latency_forward_cold", "the same with an empty L2 cache"),
    _time("fwd+bwd ms", "latency_training", "forward and backward in train mode"),
    _time("fwd+bwd cold ms", "latency_training_cold", "the same with an empty L2 cache"),
    Column(
        "compile s",
        "seconds of the first, compiling calls; in none of the times",
        lambda row: row.get("compile_seconds"),
        lambda row: "" if row.get("compile_seconds") is None else f"{row['compile_seconds']:.3g}",
    ),
    _bytes("saved bytes", "memory_saved_bytes", "what autograd keeps between forward and backward"),
    _bytes("peak bytes", "memory_peak_bytes", "the most a training step holds beyond its start"),
    _roof(
        "roof",
        "roof_forward",
        "what bounds the forward pass (memory bandwidth, matrix rate, or the launching of "
        "operators) and the fraction of that roof it reaches",
    ),
    _roof("roof fwd+bwd", "roof_training", "the same of forward and backward", brief=False),
    _rank("rank_training", "rank fwd+bwd", brief=False),
    _time(
        "train fwd ms",
        "latency_train_forward",
        "the forward pass in train mode, autograd recording",
        brief=False,
    ),
    _whole("MACs run", "macs_executed", "multiply-adds that our arithmetic runs", brief=False),
    _whole(
        "elementwise",
        "elementwise",
        "elementwise and reduction operations of one sample's forward pass",
        brief=False,
    ),
    _word("throttle", "what held the clock back while timing", brief=False),
    _bytes(
        "min bytes fwd+bwd", "bytes_training", "the same with the gradients of all three", False
    ),
)
