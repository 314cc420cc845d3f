"""Authors' weights into our blocks: by their own key names, checked key by key."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..registry import Entry, KeyMap, build, find
from ..validation import messages
from . import files

# What wrappers of a module put into its keys, in the middle too; such names tell no layer.
_WRAPPED = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


class _Match(NamedTuple):
    """How a state dict fits one naming under one prefix."""

    prefix: str
    keys: dict[str, str]  # ours -> theirs, prefix included
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misshaped)

    @property
    def faults(self) -> int:
        return 2 * len(self.missing) + len(self.unexpected) + len(self.misshaped)


def from_upstream(
    name: str,
    state_dict: Mapping[str, Tensor] | str | os.PathLike[str],
    *args: Any,
    prefix: str | None = None,
    **config: Any,
) -> nn.Module:
    """Build a block and load the authors' own weights into it.

    Args:
        name: a name of `attnzoo.names()`.
        state_dict: tensors by the authors' key names (any of the namings the block knows, or
            ours); or a whole checkpoint, the block's keys under one prefix and others beside it;
            or the path of such a file, of safetensors or of `torch.save`, which is read without
            unpickling any code. What torch.compile, FSDP and checkpointing add to keys is dropped.
        *args: the channels `c`, by position.
        prefix: which of several matching prefixes to take (`"layer1.0.se"`); "" is the root,
            where the keys of other layers beside the block's are then ignored.
        **config: the block's keywords.

    Returns:
        The block in the default dtype, in training mode, as `build` returns it.

    Raises:
        ValueError: keys are missing, unexpected or of another shape, or several prefixes match;
            the message names them, and the copy of the block whose keys they are; or a file that
            cannot be read.
        TypeError: `state_dict` is no mapping of str to Tensor.
    """
    entry = find(name)
    if isinstance(state_dict, (str, os.PathLike)):
        state_dict = files.read(state_dict)
    _check(state_dict, prefix)
    state_dict = _unwrapped(state_dict)
    prefix = None if prefix is None else _WRAPPED.sub("", prefix)
    block = build(name, *args, **config)
    own = block.state_dict()
    if not own:
        return block
    if any(tensor.is_meta for tensor in own.values()):
        raise ValueError("the meta device holds no values to load weights into; build on another")
    match = _best(entry, own, state_dict, prefix)
    if not match.fits:
        raise ValueError(_complaint(entry, match) + _known_copy(entry, state_dict))
    block.load_state_dict(
        {
            ours: state_dict[match.keys[ours]].reshape(tensor.shape)
            if ours in match.keys
            else tensor  # a counter that old checkpoints lack
            for ours, tensor in own.items()
        }
    )
    return block


def upstream_keys(name: str, block: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Our parameter and buffer names to the authors' keys that were found in `state_dict`."""
    own = block.state_dict()
    return _best(find(name), own, state_dict, None).keys if own else {}


def _check(state_dict: Mapping[str, Tensor], prefix: str | None) -> None:
    if not (prefix is None or isinstance(prefix, str)):
        raise TypeError(
            f"prefix={messages.shown(prefix)} must be a str or None, not {type(prefix).__name__}"
        )
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict must map names to tensors, not be a {type(state_dict).__name__}; "
            "of a module, take module.state_dict()"
        )
    for key, value in state_dict.items():
        if not (isinstance(key, str) and isinstance(value, Tensor)):
            raise TypeError(
                f"state_dict[{messages.shown(key)}] is a {type(value).__name__}, not a Tensor; "
                "where a checkpoint nests its weights, pass the inner mapping"
            )
        if is_lazy(value):
            raise ValueError(
                f"state_dict[{messages.shown(key)}] is uninitialized; run its module once"
            )
        if value.is_meta or value.is_complex():
            kind = "on the meta device, which holds no values" if value.is_meta else "complex"
            raise ValueError(
                f"state_dict[{messages.shown(key)}] is {kind}; weights must be real numbers"
            )
        if value.is_quantized or value.is_nested or value.layout != torch.strided:
            raise ValueError(
                f"state_dict[{messages.shown(key)}] is {value.dtype}, {value.layout}; "
                "weights must be dense"
            )


def _unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, by keys without the names that wrappers add."""
    plain = {_WRAPPED.sub("", key): value for key, value in state_dict.items()}
    if len(plain) < len(state_dict):
        twice = next(key for key in state_dict if _WRAPPED.sub("", key) != key)
        raise ValueError(f"state_dict holds {twice!r} with and without its wrapper; keep one")
    return plain


def _best(
    entry: Entry, own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], prefix: str | None
) -> _Match:
    """The one match that fits, else the nearest; several that fit raise."""
    tried = [
        _match(naming, own, state_dict, candidate, lone=prefix != "")
        for naming in (*entry.upstream, {})
        for candidate in _prefixes(naming, own, state_dict, prefix)
    ]
    fitting = list({m.prefix: m for m in reversed(tried) if m.fits}.values())
    if len(fitting) > 1:
        found = ", ".join(repr(m.prefix) for m in sorted(fitting))
        raise ValueError(
            f"{len(fitting)} places of state_dict hold the weights of a {entry.name!r}: {found}; "
            "pick one with prefix="
        )
    return fitting[0] if fitting else min(tried, key=lambda m: m.faults)


def _prefixes(
    naming: KeyMap, own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], given: str | None
) -> list[str]:
    if given is not None:
        return [given if not given or given.endswith(".") else f"{given}."]
    ends = {_theirs(naming, ours) for ours in own if not _is_counter(ours)}
    return sorted(
        {""}
        | {
            key[: len(key) - len(end)]
            for end in ends
            for key in state_dict
            if key.endswith(f".{end}")
        }
    )


def _match(
    naming: KeyMap,
    own: Mapping[str, Tensor],
    state_dict: Mapping[str, Tensor],
    prefix: str,
    lone: bool,
) -> _Match:
    """How the keys under `prefix` fit; unless `lone`, other layers may stand beside the block."""
    expected = {ours: prefix + _theirs(naming, ours) for ours in own}
    keys = {ours: theirs for ours, theirs in expected.items() if theirs in state_dict}
    idle = [_pattern(theirs) for theirs, ours in naming.items() if ours is None]
    taken = set(expected.values())
    layers = {theirs.split(".", 1)[0] for theirs in taken}
    return _Match(
        prefix=prefix.removesuffix("."),
        keys=keys,
        missing=[
            theirs
            for ours, theirs in expected.items()
            if ours not in keys and not _is_counter(ours)
        ],
        unexpected=[
            key
            for key in state_dict
            if key.startswith(prefix)
            and key not in taken
            and (lone or key.split(".", 1)[0] in layers)
            and not any(pattern.match(key[len(prefix) :]) for pattern in idle)
        ],
        misshaped=[
            f"{theirs} of shape {tuple(state_dict[theirs].shape)} for {tuple(own[ours].shape)}"
            for ours, theirs in keys.items()
            if _bare(state_dict[theirs]) != _bare(own[ours])
        ],
    )


def _theirs(naming: KeyMap, ours: str) -> str:
    """The authors' key of one of our keys: the longest of our paths that leads to it."""
    best = ("", ours)
    for theirs, path in naming.items():
        if path is None:
            continue
        found = _pattern(path).match(ours)
        if found and len(path) >= len(best[0]):
            pieces = iter(found.groups())
            best = (path, re.sub(r"\*", lambda _: next(pieces), theirs) + ours[found.end() :])  # noqa: B023
    return best[1]


def _pattern(path: str) -> re.Pattern[str]:
    """Matches a dotted path at the start of a key, whole names only; "*" is one name."""
    return re.compile(re.escape(path).replace(r"\*", r"([^.]+)") + r"(?=\.|$)")


def _bare(tensor: Tensor) -> tuple[int, ...]:
    """The shape without axes of length one, which the namings of one layer differ in."""
    return tuple(n for n in tensor.shape if n != 1)


def _is_counter(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def _complaint(entry: Entry, match: _Match) -> str:
    where = f" under {match.prefix!r}" if match.prefix else ""
    faults = [
        f"{label}: {', '.join(keys[:8])}{f' and {len(keys) - 8} more' * (len(keys) > 8)}"
        for label, keys in (
            ("missing", match.missing),
            ("unexpected", match.unexpected),
            ("of another shape", match.misshaped),
        )
        if keys
    ]
    return (
        f"state_dict does not hold the weights of this {entry.name!r}{where}; {'; '.join(faults)}"
    )


def _known_copy(entry: Entry, keys: Iterable[str]) -> str:
    """What the keys tell of a well-known copy of the block, if they are one's."""
    for copy in entry.known_variants:
        if _holds(keys, copy.keys) and not any(_holds(keys, (key,)) for key in copy.lacks):
            return (
                f"; these keys are those of {copy.whose}, which {copy.computes}: "
                "its weights do not carry over"
            )
    return ""


def _holds(keys: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether every wanted key is there, under any prefix."""
    return all(any(f".{key}".endswith(f".{end}") for key in keys) for end in wanted)
