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
