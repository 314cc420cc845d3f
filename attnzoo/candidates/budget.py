"""Limits on what a block may add to a network, from text such as "latency=5%,parameters=1M"."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Inside = Literal["yes", "no", "unsure"]
UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}
SHARES = ("latency", "training", "memory")  # known as ratios alone
KEYS = ("parameters", "macs", *SHARES)


class Limit(NamedTuple):
    """The most that one quantity may grow: by so many, or by a share of the plain network's."""

    key: str
    amount: float
    share: bool

    def inside(self, added: float, low: float, high: float) -> Inside:
        """Whether an amount is within the limit; unsure where its interval lies on both sides."""
        if low <= self.amount < high:
            return "unsure"
        return "yes" if added <= self.amount else "no"


def parsed(budget: str | Mapping[str, str | float] | None) -> tuple[Limit, ...]:
    """The limits of a budget.

    Args:
        budget: "latency=5%,parameters=1M", or the same as a dict. Keys are parameters, macs,
            latency (of inference), training (the time of a step) and memory (that autograd saves);
            the last three take a percentage.

    Raises:
        ValueError: an unknown key, or a value that is no amount.
    """
    if budget is None:
        return ()
    pairs = (
        [part.partition("=")[::2] for part in budget.split(",")]
        if isinstance(budget, str)
        else [(key, str(value)) for key, value in budget.items()]
    )
    return tuple(_limit(key.strip(), value.strip()) for key, value in pairs)


def _limit(key: str, text: str) -> Limit:
    if key not in KEYS:
        raise ValueError(
            f"budget has {key!r}; it may have {', '.join(KEYS)}: budget='latency=5%,parameters=1M'"
        )
    share = text.endswith("%")
    number = text.removesuffix("%") if share else text.rstrip("KMG")
    unit = "" if share else text[len(number) :]
    try:
        amount = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        amount = -1.0
    if not 0 <= amount < float("inf") or (key in SHARES and not share):
        legal = "a percentage, such as 5%" if key in SHARES else "such as 5%, 20000 or 1.5M"
        raise ValueError(f"budget's {key}={text} must be {legal}")
    return Limit(key, amount / 100 if share else amount, share)
