"""Matches the keys of a state dict to a block's parameters and buffers, by prefix, name and shape.

A naming is a map of the authors' module paths to ours; a block may have several.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from ..registry import Entry, KeyMap

# Names that wrappers add anywhere in a module's keys; they do not name a layer.
_WRAPPERS = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


class Match(NamedTuple):
    """The result of matching a state dict against one naming under one prefix."""

    prefix: str
    keys: dict[str, str]  # ours -> theirs, prefix included
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    @property
    def fits(self) -> bool:
        """Whether no key is missing or unexpected and all shapes agree."""
        return not (self.missing or self.unexpected or self.misshaped)

    @property
    def mismatches(self) -> int:
        """The number of mismatches; a missing key counts twice."""
        return 2 * len(self.missing) + len(self.unexpected) + len(self.misshaped)


def without_wrappers(key: str) -> str:
    """A key without the names that torch.compile, FSDP and checkpointing add."""
    return _WRAPPERS.sub("", key)


def best_match(
    entry: Entry, own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], prefix: str | None
) -> Match:
    """The only match that fits, or the one with the fewest mismatches.

    Args:
        entry: the block's entry; its upstream namings are tried, then the block's own names.
        own: the block's state dict.
        state_dict: the authors' state dict.
        prefix: the prefix to try; None tries every prefix that occurs before a key of the block.

    Raises:
        ValueError: several prefixes fit.
    """
    tried = _tried(entry, own, state_dict, prefix)
    fitting = _fitting(tried)
    if len(fitting) > 1:
        found = ", ".join(repr(m.prefix) for m in sorted(fitting))
        raise ValueError(
            f"{len(fitting)} prefixes of state_dict fit the weights of a {entry.name!r}: {found}; "
            "pick one with prefix="
        )
    return fitting[0] if fitting else min(tried, key=lambda m: m.mismatches)


def fitting_matches(
    entry: Entry, own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], prefix: str | None
) -> list[Match]:
    """Every match that fits, one for each prefix; the arguments are those of `best_match`."""
    return _fitting(_tried(entry, own, state_dict, prefix))


def _tried(
    entry: Entry, own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], prefix: str | None
) -> list[Match]:
    return [
        _match(naming, own, state_dict, candidate, strict=prefix != "")
        for naming in (*entry.upstream, {})
        for candidate in _prefixes(naming, own, state_dict, prefix)
    ]


def _fitting(tried: list[Match]) -> list[Match]:
    return list({m.prefix: m for m in reversed(tried) if m.fits}.values())


def _prefixes(
    naming: KeyMap, own: Mapping[str, Tensor], state_dict: Mapping[str, Tensor], given: str | None
) -> list[str]:
    """The given prefix, or every prefix that occurs before a key of the block."""
    if given is not None:
        return [given if not given or given.endswith(".") else f"{given}."]
    ends = {_theirs(naming, ours) for ours in own if not is_counter(ours)}
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
    strict: bool,
) -> Match:
    """Match the keys under `prefix`; unless `strict`, keys of other layers there are ignored."""
    expected = {ours: prefix + _theirs(naming, ours) for ours in own}
    keys = {ours: theirs for ours, theirs in expected.items() if theirs in state_dict}
    idle = [_path_pattern(theirs) for theirs, ours in naming.items() if ours is None]
    taken = set(expected.values())
    layers = {theirs.split(".", 1)[0] for theirs in taken}
    return Match(
        prefix=prefix.removesuffix("."),
        keys=keys,
        missing=[
            theirs for ours, theirs in expected.items() if ours not in keys and not is_counter(ours)
        ],
        unexpected=[
            key
            for key in state_dict
            if key.startswith(prefix)
            and key not in taken
            and (strict or key.split(".", 1)[0] in layers)
            and not any(pattern.match(key[len(prefix) :]) for pattern in idle)
        ],
        misshaped=[
            f"{theirs} of shape {tuple(state_dict[theirs].shape)} for {tuple(own[ours].shape)}"
            for ours, theirs in keys.items()
            if squeezed(state_dict[theirs]) != squeezed(own[ours])
        ],
    )


def _theirs(naming: KeyMap, ours: str) -> str:
    """The authors' key for one of our keys, by the longest of our paths that it starts with."""
    best = ("", ours)
    for theirs, path in naming.items():
        if path is None:
            continue
        found = _path_pattern(path).match(ours)
        if found and len(path) >= len(best[0]):
            names = iter(found.groups())
            best = (path, re.sub(r"\*", lambda _: next(names), theirs) + ours[found.end() :])  # noqa: B023
    return best[1]


def _path_pattern(path: str) -> re.Pattern[str]:
    """Matches a dotted path at the start of a key, whole names only; "*" is one name."""
    return re.compile(re.escape(path).replace(r"\*", r"([^.]+)") + r"(?=\.|$)")


def squeezed(tensor: Tensor) -> tuple[int, ...]:
    """The shape without axes of length one, such as those of a 1x1 convolution's weight."""
    return tuple(n for n in tensor.shape if n != 1)


def is_counter(key: str) -> bool:
    """Whether a key is BatchNorm's `num_batches_tracked`, which old checkpoints lack, or the number
    of updates that torch's `AveragedModel` puts beside the weights."""
    return key.endswith("num_batches_tracked") or key == "n_averaged"


def mismatch_message(entry: Entry, match: Match, keys: Iterable[str]) -> str:
    """The error message: the mismatches, and the known variant that has these keys, if any."""
    where = f" under {match.prefix!r}" if match.prefix else ""
    mismatches = format_mismatches(match.missing, match.unexpected, match.misshaped)
    return (
        f"state_dict does not contain the weights of this {entry.name!r}{where}; "
        f"{mismatches}{known_variant(entry, keys)}"
    )


def format_mismatches(missing: list[str], unexpected: list[str], misshaped: list[str]) -> str:
    """Lists of keys as text, the first eight of each."""
    return "; ".join(
        f"{label}: {', '.join(found[:8])}{f' and {len(found) - 8} more' * (len(found) > 8)}"
        for label, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
        )
        if found
    )


def known_variant(entry: Entry, keys: Iterable[str]) -> str:
    """`; the keys are those of ...` where they are those of a variant, else an empty string."""
    for variant in entry.known_variants:
        lacks = not any(_contains(keys, (key,)) for key in variant.lacks)
        if _contains(keys, variant.keys) and lacks:
            return (
                f"; the keys are those of {variant.whose}, which {variant.computes}: "
                "its weights cannot be used here"
            )
    return ""


def _contains(keys: Iterable[str], wanted: Iterable[str]) -> bool:
    """Whether every wanted key is among the keys, under any prefix."""
    return all(any(f".{key}".endswith(f".{end}") for key in keys) for end in wanted)
