"""Loads a checkpoint of a whole network with many blocks: each block by its authors' key names."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ..registry import Entry, entry_of
from .keys import (
    Match,
    fitting_matches,
    format_mismatches,
    is_counter,
    known_variant,
    squeezed,
)


class _Block(NamedTuple):
    """A block of the network."""

    path: str
    entry: Entry
    own: dict[str, Tensor]


def load(model: nn.Module, state: Mapping[str, Tensor], prefix: str | None) -> nn.Module:
    """Load the weights into the network, in place.

    Blocks take the keys of any of their namings, under the prefix whose path is nearest to their
    own. The other layers have the names of the checkpoint's, all of them, or else its order, where
    shapes and the ends of all names agree.

    Raises:
        ValueError: a key is missing, left over or of another shape; the network is not changed.
    """
    own = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise ValueError("a model on the meta device has no values; move it to another device")
    blocks = list(_blocks(model, own))
    inside = {f"{block.path}.{key}" for block in blocks for key in block.own}
    layers = {key: value for key, value in own.items() if key not in inside}
    if prefix is None:
        prefix = _prefix(layers, state)
    prefix = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    named = _by_name(layers, state, prefix)
    complete = _agree(named, layers, own, state)
    keys = named if complete else {}
    taken = {*keys.values()}
    free = {key: value for key, value in state.items() if key not in taken}
    for block in blocks:
        match = _nearest(block, free, prefix)
        if match is None:
            raise ValueError(_no_weights(block, free, prefix))
        for ours, theirs in match.keys.items():
            keys[f"{block.path}.{ours}"] = theirs
            del free[theirs]
    if not complete:
        keys |= _by_order(layers, free) or named
    _check(model, own, state, keys)
    counters = {key: value for key, value in own.items() if key not in keys}
    found = {ours: state[theirs].reshape(own[ours].shape) for ours, theirs in keys.items()}
    model.load_state_dict({**counters, **found})
    return model


def _blocks(model: nn.Module, own: Mapping[str, Tensor]) -> Iterable[_Block]:
    """The outermost blocks that have weights."""
    outer: tuple[str, ...] = ()
    for path, module in model.named_modules():
        entry = entry_of(module)
        if entry is None or path.startswith(outer or ("\n",)):
            continue
        inside = f"{path}." if path else ""
        found = {key[len(inside) :]: value for key, value in own.items() if key.startswith(inside)}
        if found:
            outer += (inside,)
            yield _Block(path, entry, found)


def _prefix(layers: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What stands before most of the network's names in the checkpoint, such as `module.`."""
    ends = [*layers][:: max(1, len(layers) // 8)]
    candidates = {key[: -len(end)] for end in ends for key in state if key.endswith(f".{end}")}
    return max(
        ["", *sorted(candidates, key=len)], key=lambda p: sum(p + key in state for key in layers)
    )


def _by_name(
    layers: Mapping[str, Tensor], state: Mapping[str, Tensor], prefix: str
) -> dict[str, str]:
    return {key: prefix + key for key in layers if prefix + key in state}


def _agree(
    keys: Mapping[str, str],
    layers: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
) -> bool:
    """Whether every layer has a key of its shape."""
    return all(key in keys or is_counter(key) for key in layers) and all(
        squeezed(own[ours]) == squeezed(state[theirs]) for ours, theirs in keys.items()
    )


def _nearest(block: _Block, state: Mapping[str, Tensor], prefix: str) -> Match | None:
    """Of the prefixes that fit, the one that has most of its path in common with the block's."""
    exact = fitting_matches(block.entry, block.own, state, prefix + block.path)
    if exact:
        return exact[0]
    found = fitting_matches(block.entry, block.own, state, None)
    order = {key: i for i, key in enumerate(state)}

    def distance(match: Match) -> tuple[int, int]:
        return (
            -_in_common(match.prefix.removeprefix(prefix), block.path),
            min(order[key] for key in match.keys.values()),
        )

    return min(found, key=distance, default=None)


def _in_common(a: str, b: str) -> int:
    """The number of names that two paths start with."""
    count = 0
    for one, other in zip(a.split("."), b.split("."), strict=False):
        if one != other:
            break
        count += 1
    return count


def _by_order(layers: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Layers and keys one by one, where all ends of names and all shapes agree; else None."""
    ours = [key for key in layers if not is_counter(key)]
    theirs = [key for key in state if not is_counter(key)]
    agree = len(ours) == len(theirs) and all(
        a.rpartition(".")[2] == b.rpartition(".")[2] and squeezed(layers[a]) == squeezed(state[b])
        for a, b in zip(ours, theirs, strict=True)
    )
    return dict(zip(ours, theirs, strict=True)) if agree else None


def _check(
    model: nn.Module,
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    keys: Mapping[str, str],
) -> None:
    taken = {*keys.values()}
    missing = [key for key in own if key not in keys and not is_counter(key)]
    unexpected = [key for key in state if key not in taken and not is_counter(key)]
    misshaped = [
        f"{theirs} of shape {tuple(state[theirs].shape)} for {tuple(own[ours].shape)}"
        for ours, theirs in keys.items()
        if squeezed(state[theirs]) != squeezed(own[ours])
    ]
    if missing or unexpected or misshaped:
        raise ValueError(
            f"state_dict does not contain the weights of this {type(model).__name__}; "
            f"{format_mismatches(missing, unexpected, misshaped)}. Build the network as its "
            "checkpoint was, with the same blocks at the same places"
        )


def _no_weights(block: _Block, state: Mapping[str, Tensor], prefix: str) -> str:
    """The error for a block that no prefix fits."""
    parent = block.path.rpartition(".")[0] or block.path
    shared = {key: _in_common(key.removeprefix(prefix), parent) for key in state}
    most = max(shared.values(), default=0)
    near = [key for key, count in shared.items() if count == most > 0]
    beside = f"; beside it state_dict has {_listed({k: state[k] for k in near})}" if near else ""
    hint = "; build the block with the config of the checkpoint's"
    biases = any(key.endswith(".bias") for key in near) and not any("bias" in k for k in block.own)
    if biases and "bias" in block.entry.signature.parameters:
        hint = "; a block without biases does not take them: build it with bias=True"
    return (
        f"state_dict has no weights that fit the {block.entry.name!r} at {block.path!r}, which has "
        f"{_listed(block.own)}{beside}{hint}{known_variant(block.entry, near)}"
    )


def _listed(tensors: Mapping[str, Tensor]) -> str:
    """The first six names with their shapes."""
    return ", ".join(f"{key} {tuple(value.shape)}" for key, value in [*tensors.items()][:6])
