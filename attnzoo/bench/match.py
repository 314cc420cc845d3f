"""Which row of one run is which of another, and what a reader calls it."""

import json
from collections.abc import Sequence
from typing import Any

from .columns import shapes
from .results import Result

SETTINGS = ("dtype", "autocast", "channels_last", "mode")
Pair = tuple[Result | None, Result | None]


def pairs(old: Sequence[Result], new: Sequence[Result], keys: Sequence[str]) -> list[Pair]:
    """Rows of both runs side by side; a failure pairs by what is known of it."""
    rest = [(row, _key(row, keys)) for row in new]
    for side, rows in (("OLD", old), ("NEW", new)):
        _distinct(side, rows, keys)
    found: list[Pair] = []
    for row in old:
        mine = _key(row, keys)
        mate = next((pair for pair in rest if _agree(mine, pair[1])), None)
        if mate is not None:
            rest.remove(mate)
        found.append((row, mate[0]) if mate else (row, None))
    return [*found, *((None, row) for row, _ in rest)]


def _distinct(side: str, rows: Sequence[Result], keys: Sequence[str]) -> None:
    seen = set()
    for row in rows:
        name = json.dumps(_key(row, keys), sort_keys=True)
        if name in seen:
            raise ValueError(f"{side} has two rows of {row.block} alike in {', '.join(keys)}")
        seen.add(name)


def _agree(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(old[name] == new[name] for name in old.keys() & new.keys())


def _key(row: Result, keys: Sequence[str]) -> dict[str, Any]:
    known = json.loads(row.identity())
    return {name: known[name] for name in keys if name in known}


def labels(rows: Sequence[Result | None]) -> list[str]:
    """Each row's block, with whatever tells it from the block's other rows."""
    known = [json.loads(row.identity()) for row in rows if row is not None]
    found = []
    for mine in known:
        flat = _flat(mine)
        twins = [_flat(other) for other in known if other["block"] == mine["block"]]
        telling = [n for n in flat if any(twin.get(n) != flat[n] for twin in twins)]
        found.append(" ".join([mine["block"], *(f"{n}={flat[n]}" for n in telling)]))
    return found


def _flat(known: dict[str, Any]) -> dict[str, str]:
    """What may tell two rows of a block apart, as text."""
    shape = shapes(known.get("shape", {}))
    settings = {name: str(known[name]) for name in SETTINGS if name in known}
    return {**{k: str(v) for k, v in known.get("config", {}).items()}, "shape": shape, **settings}
