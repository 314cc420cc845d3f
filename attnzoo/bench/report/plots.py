"""Plots of the table: latency against work, and the roofline chart.

The same rows give the same SVG, byte for byte, whatever the user's matplotlib settings.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..row import PlainRow, amount
from .table import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = {
    "svg.hashsalt": "attnzoo",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
NAMED = 40  # with more points than this, each block is named once
Number = Callable[[PlainRow], float]
# Of each chart: the titles of its axes, a row's x and y, and the roof over x, bytes/s and MAC/s.
CHARTS: dict[str, tuple[str, str, Number, Number, Callable[[float, float, float], float]]] = {
    "latency-macs": (
        "multiply-adds of the forward pass, whole batch",
        "forward pass, ms",
        lambda row: batch(row) * row["macs"],
        lambda row: row["latency_forward_ms"],
        lambda x, bandwidth, macs: 1e3 * x / macs,
    ),
    "latency-bytes": (
        "bytes any implementation must move in the forward pass, whole batch",
        "forward pass, ms",
        lambda row: row["bytes_forward"],
        lambda row: row["latency_forward_ms"],
        lambda x, bandwidth, macs: 1e3 * x / bandwidth,
    ),
    "roofline": (
        "multiply-adds per minimum byte of the forward pass",
        "multiply-adds per second",
        lambda row: batch(row) * row["macs_executed"] / row["bytes_forward"],
        lambda row: 1e3 * batch(row) * row["macs_executed"] / row["latency_forward_ms"],
        lambda x, bandwidth, macs: min(x * bandwidth, macs),
    ),
}


def pictures(rows: Sequence[PlainRow], folder: Path) -> dict[str, str]:
    """Draw what the measured rows allow into `folder`, as SVG and PNG; the SVGs by their names."""
    import matplotlib.style  # takes a second

    figures = {}
    with matplotlib.style.context(["default", STYLE]):
        for name, chart in CHARTS.items():
            if drawn := [row for row in rows if chart[2](row) > 0]:
                figures[name] = _chart(drawn, *chart)
        return {name: _saved(name, figure, folder) for name, figure in figures.items()}


def batch(row: PlainRow) -> int:
    """The batch size."""
    first = next(iter(row["shape"].values()))
    return int(first[0][0] if isinstance(first[0], list) else first[0])


def _chart(
    rows: Sequence[PlainRow], x_title: str, y_title: str, x: Number, y: Number, roof: Any
) -> "Figure":
    """A point for each row, hollow if its time is uncertain, and the roof of each machine."""
    figure, axes = _axes(x_title, y_title, len(rows))
    for i, layout in enumerate(sorted({row["layout"] for row in rows})):
        same = [row for row in rows if row["layout"] == layout]
        fills = [f"C{i}" if row["latency_forward_settled"] else "white" for row in same]
        axes.scatter([*map(x, same)], [*map(y, same)], s=25, ec=f"C{i}", fc=fills)
        axes.plot([], [], "o", color=f"C{i}", label=layout)
    _roofs(axes, rows, roof)
    figure.legend(loc="outside lower left", ncols=3)
    many = len(rows) > NAMED
    named = list({row["block"]: row for row in rows}.values()) if many else list(rows)
    for i, row in enumerate(sorted(named, key=y)):  # neighbors have their names on opposite sides
        side = ("left", 5) if i % 2 else ("right", -5)
        name = row["block"] if many else label(row, rows)
        text = axes.annotate(name, (x(row), y(row)), (side[1], 0), textcoords="offset points")
        text.set(ha=side[0], va="center", fontsize=7, parse_math=False)
    return figure


def _roofs(axes: "Axes", rows: Sequence[PlainRow], roof: Any) -> None:
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    xs = [low * (high / low) ** (i / 50) for i in range(51)]
    for dtype in sorted({row["dtype"] for row in rows}):
        same = [row for row in rows if row["dtype"] == dtype]
        rates = [max(row[key] for row in same) for key in ("roof_bandwidth", "roof_macs")]
        ys = [roof(x, *rates) for x in xs]
        text = f"{dtype}: {rates[0] / 1e9:.3g} GB/s, {rates[1] / 1e9:.3g} GMAC/s"
        axes.plot(xs, ys, color="black", lw=1.2, label=text)
        top = max(top, 1.5 * max(ys))
    axes.set(xlim=(low, high), ylim=(bottom, top))


def _axes(x: str, y: str, count: int) -> "tuple[Figure, Axes]":
    """Axes of a new figure, logarithmic both ways, taller for more points."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    height = 5.5 * max(1.0, min(count, 100) / 30) ** 0.5
    figure = Figure(figsize=(8.5, height), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.margins(0.1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is axes.yaxis else (1,)))
        axis.set_major_formatter(lambda value, _: amount(value))
        axis.set_minor_formatter(NullFormatter())
    return figure, axes


def _saved(name: str, figure: "Figure", folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    (folder / f"{name}.svg").write_text(text.getvalue(), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=130)
    return text.getvalue()
