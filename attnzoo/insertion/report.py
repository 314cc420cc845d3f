"""The report of `insert`: one record for each place, printed as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..registry import JSON, Layout
from .host import How


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One block in the network."""

    path: str
    how: How
    layout: Layout
    config: dict[str, Any]  # the keywords of `attnzoo.build`
    shape: tuple[int, ...]  # of the tensor that the block takes, in the traced run
    parameters: int  # added; for "instead", minus those of the replaced module
    macs: int  # multiply-adds added to one sample's forward pass, likewise
    recipe: dict[str, JSON]  # what `attnzoo.apply` reads


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """What `insert` did, or would do with `dry_run=True`; `str` formats it as a table."""

    block: str
    placements: tuple[Placement, ...]
    network_parameters: int  # before
    network_macs: int  # of one sample's forward pass, before
    uncounted: tuple[str, ...]  # operators of the network that `network_macs` leaves out
    dry_run: bool

    @property
    def parameters(self) -> int:
        """Parameters added in all."""
        return sum(p.parameters for p in self.placements)

    @property
    def macs(self) -> int:
        """Multiply-adds added to one sample's forward pass in all."""
        return sum(p.macs for p in self.placements)

    @property
    def recipe(self) -> list[dict[str, JSON]]:
        """The insertion as JSON: `attnzoo.apply(model, recipe)` puts the same blocks back."""
        return [p.recipe for p in self.placements]

    def __str__(self) -> str:
        rows = [("", "where", "shape", "parameters", "MACs", "config")]
        for p in self.placements:
            config = ", ".join(f"{key}={value!r}" for key, value in p.config.items())
            shape = "x".join(map(str, p.shape))
            rows.append((p.how, p.path, shape, f"{p.parameters:+,}", f"{p.macs:+,}", config))
        rows.append(("", "in all", "", f"{self.parameters:+,}", f"{self.macs:+,}", ""))
        before = (f"{self.network_parameters:,}", f"{self.network_macs:,}")
        rows.append(("", "the network had", "", *before, ""))
        places = f"{len(self.placements)} place{'s' * (len(self.placements) != 1)}"
        verb = "would go" if self.dry_run else "went"
        lines = [f"{self.block} {verb} to {places}; MACs are of one sample", *_aligned(rows)]
        if self.uncounted:
            lines.append(f"of the network's operators not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines, the two columns of numbers aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in (3, 4) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
