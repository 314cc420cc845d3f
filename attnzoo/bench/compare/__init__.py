"""What changed between two versions: measured side by side, or read from two result files."""

from typing import NamedTuple


class Change(NamedTuple):
    """One quantity of one block on both sides, or why a side has none."""

    row: str
    quantity: str
    a: float | None
    b: float | None
    verdict: str  # same, slower, faster, more, less, larger, fails, works, fails still, gone, added
    null: float | None = None  # a second copy of A over A: 1, except for measurement error
    error: str = ""

    @property
    def ratio(self) -> float | None:
        """The second over the first."""
        return self.b / self.a if self.a and self.b is not None else None

    @property
    def regression(self) -> bool:
        """Whether B is worse than A."""
        return self.verdict in ("slower", "larger", "fails")
