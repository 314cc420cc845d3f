"""Sweeps: `--sweep KEY=V1,V2,...` and the rows that several of them ask for."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..registry import Entry
from ..validation import check
from .job import Job, example_job
from .settings import Settings

Point = Mapping[str, Any]  # one value for each swept key
SIZE_KEYS = {"size": "size", "T": "steps", "batch": "batch"}  # to settings; others are keywords


class Sweep(NamedTuple):
    """One `--sweep KEY=V1,V2,...`."""

    key: str
    values: tuple[Any, ...]


def parse(text: str) -> Sweep:
    """`c=32,64` as a sweep; values are JSON, or text where they are not.

    Raises ValueError where there is no key or no value, or a value comes twice.
    """
    key, equals, rest = text.partition("=")
    if not (key and equals and rest):
        raise ValueError(f"--sweep {text!r} must be KEY=V1,V2,..., such as c=32,64,128")
    try:
        values = json.loads(f"[{rest}]")
    except ValueError:
        values = [_value(word) for word in rest.split(",")]
    if any(value in values[:i] for i, value in enumerate(values)) or "" in values:
        raise ValueError(f"--sweep {text!r}: each value must be there once")
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        raise ValueError(f"--sweep {text!r}: a number must be finite")
    if key in SIZE_KEYS:
        values = [_sides(key, value) for value in values]
    return Sweep(key, tuple(values))


def points(sweeps: Sequence[Sweep]) -> list[dict[str, Any]]:
    """Every combination of the sweeps' values, the last key running fastest; [{}] without any.

    Raises ValueError where two sweeps have one key.
    """
    keys = [sweep.key for sweep in sweeps]
    if len(set(keys)) < len(keys):
        raise ValueError(f"--sweep: each key once, not {', '.join(keys)}")
    values = itertools.product(*(sweep.values for sweep in sweeps))
    return [dict(zip(keys, each, strict=True)) for each in values]


def require_known(sweeps: Iterable[Sweep], entries: Sequence[Entry]) -> None:
    """Each key is a size or a keyword of one of the blocks; ValueError names the nearest."""
    keywords = {key for entry in entries for key in entry.signature.parameters}
    for sweep in sweeps:
        check.choice("--sweep", sweep.key, [*SIZE_KEYS, *sorted(keywords)])


def job_at(entry: Entry, settings: Settings, point: Point) -> Job:
    """A block at one point of the sweeps; keywords that it does not have are ignored."""
    sizes = {SIZE_KEYS[key]: value for key, value in point.items() if key in SIZE_KEYS}
    return example_job(entry.name, point, replace(settings, **sizes))


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def _sides(key: str, value: Any) -> Any:
    if isinstance(value, str) and key == "size":
        sides = value.split("x")
        if len(sides) == 2 and all(side.isdecimal() and int(side) > 0 for side in sides):
            return (int(sides[0]), int(sides[1]))
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
        return value
    legal = "whole numbers of at least 1" + " or HxW" * (key == "size")
    raise ValueError(f"--sweep {key}: {value!r} is not one of the {legal}")
