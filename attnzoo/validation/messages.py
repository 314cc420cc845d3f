"""The wording of error messages: short representations of values, and the nearest legal names."""

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def shown(value: object) -> str:
    """A short representation of any value, for messages."""
    text = " ".join(_short.repr(value).split())
    return text if len(text) <= 200 else f"{text[:120]}... ({type(value).__name__})"


class _Short(reprlib.Repr):
    """Limits depth, width and length, and never raises."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple = 3, 16, 16
        self.maxstring = self.maxother = 1000  # `shown` cuts the result

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**40:
            return repr(x)
        return f"{'-' * (x < 0)}2**{abs(x).bit_length() - 1} and more"  # str() raises for longer

    def repr_instance(self, x: object, level: int) -> str:
        if isinstance(x, Tensor) and not x.is_nested:
            return f"Tensor(shape={tuple(x.shape)}, dtype={x.dtype})"
        return super().repr_instance(x, level)


_short = _Short()


def nearest(
    word: str, known: Mapping[str, Any] | Sequence[str], titles: Mapping[str, str] | None = None
) -> str:
    """`; did you mean ...?` with the known words nearest to this one, by spelling or initials."""
    plain = re.sub(r"[^a-z0-9]", "", word[:100].lower())

    def similarity(name: str) -> float:
        bare = name.replace("_", "")
        score = difflib.SequenceMatcher(None, plain, bare).ratio()
        if plain and (bare.startswith(plain) or plain.startswith(bare)):
            score = max(score, 0.9)
        words = re.findall(r"[A-Za-z]+", (titles or {}).get(name, ""))
        if plain and plain == "".join(w[0] for w in words).lower()[: len(plain)]:
            score = max(score, 1.0)
        return score

    near = sorted((n for n in known if similarity(n) >= 0.5), key=similarity, reverse=True)[:3]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


# What people append to the name of a block, or put before it.
_COMMON = frozenset(["attention", "attn", "att", "block", "module", "layer", "net", "conv"])
_PARTS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")


def nearest_blocks(word: str, known: Mapping[str, Sequence[str]]) -> str:
    """`; did you mean ...?` with the blocks that a word may mean.

    Args:
        word: a name as people write it: `SKAttention`, `squeeze excitation`, `CBAMBlock`.
        known: for each block its other names: the class, the title, the titles of paper and code.
    """
    parts = _parts(word[:100])
    bare, plain = "".join(parts), re.sub(r"[^a-z0-9]", "", word[:100].lower())
    if not bare:
        return ""

    def similarity(name: str) -> float:
        cls, title, paper = known[name]
        short = {"".join(_parts(name)) or name, "".join(_parts(cls)) or cls.lower()}
        if bare in short or plain in (name.replace("_", ""), cls.lower()):
            return 3.0
        told = re.findall(r"[a-z]+", title.lower())
        head = re.findall(r"[a-z]+", title.lower().split(":")[0])
        if plain == "".join(w[0] for w in head)[: len(plain)]:
            return 2.5
        named = re.findall(r"[a-z0-9]+", paper.lower())
        if len(plain) > 3 and plain in named:
            return 2.6
        for score, words in ((2.0, head), (1.7, told), (1.5, named)):
            telling = [part for part in parts if len(part) > 2]
            if telling and all(any(w.startswith(part) for w in words) for part in telling):
                return score
        if any(one.startswith(bare) or bare.startswith(one) for one in short if len(one) > 1):
            return 1.0
        return max(difflib.SequenceMatcher(None, bare, one).ratio() for one in short)

    scores = {name: similarity(name) for name in known}
    best = max(scores.values(), default=0.0)
    if best < 0.6:
        return ""
    least = max(0.6, best if best == 3.0 else best - 1.0)
    near = sorted((n for n in known if scores[n] >= least), key=lambda n: -scores[n])[:3]
    return f"; did you mean {' or '.join(map(repr, near))}?"


def _parts(word: str) -> list[str]:
    """The words of a name in lower case, without those that every name may have."""
    return [part for part in map(str.lower, _PARTS.findall(word)) if part not in _COMMON]
