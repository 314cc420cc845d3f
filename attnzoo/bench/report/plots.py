"""The table as pictures: latency against work, scaling lines, the roofline chart.

Each is written as SVG and PNG. Nothing in them depends on the time, the display or the user's
matplotlib settings, so the same rows give the same SVG, byte for byte.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..columns import PlainRow, amount
from .growth import Line, growth, lines
from .rows import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

INK = "#1b1b1c"  # of text and axes; a page puts its own in its place
STYLE = {
    "axes.prop_cycle": "cycler(ls=['-', '--', ':']) * cycler(color=['#0072b2', '#d55e00', "
    "'#009e73', '#cc79a7', '#b8860b', '#56b4e9', '#7f7f7f'])",
    "svg.hashsalt": "attnzoo",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("text.color", "xtick.color", "ytick.color"), INK),
}
NAMED = 40  # more points than this, and each block is named once
PLACES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # of a label


class Picture(NamedTuple):
    """One figure."""

    name: str  # of its files
    title: str
    svg: str


class Chart(NamedTuple):
    """One number of the rows against another, and the line that a machine's roofs draw there."""

    title: str
    x_title: str
    y_title: str
    x: Callable[[PlainRow], float]
    y: Callable[[PlainRow], float]
    roof: Callable[[float, float, float], float]  # of x, bytes/s and MAC/s


CHARTS = {
    "latency-macs": Chart(
        "Latency against multiply-adds",
        "MACs of the forward pass, whole batch",
        "forward pass, ms",
        lambda row: batch(row) * row["macs"],
        lambda row: row["latency_forward_ms"],
        lambda x, bandwidth, macs: 1e3 * x / macs,
    ),
    "latency-bytes": Chart(
        "Latency against minimum bytes",
        "bytes any implementation must move in the forward pass, whole batch",
        "forward pass, ms",
        lambda row: row["bytes_forward"],
        lambda row: row["latency_forward_ms"],
        lambda x, bandwidth, macs: 1e3 * x / bandwidth,
    ),
    "roofline": Chart(
        "Roofline of the forward pass",
        "MACs per minimum byte",
        "MAC/s",
        lambda row: batch(row) * row["macs_executed"] / row["bytes_forward"],
        lambda row: 1e3 * batch(row) * row["macs_executed"] / row["latency_forward_ms"],
        lambda x, bandwidth, macs: min(x * bandwidth, macs),
    ),
}


def pictures(rows: Sequence[PlainRow], folder: Path) -> list[Picture]:
    """Draw what the rows allow into `folder`, as SVG and PNG, and return the SVGs.

    Rows that failed are left out, and those without multiply-adds where these are an axis; a chart
    without rows is not drawn.
    """
    import matplotlib.style  # a second, for those who draw

    good = [row for row in rows if "error" not in row]
    swept = lines(good)
    with matplotlib.style.context(["default", STYLE]):
        figures = {
            name: _against(chart, [row for row in good if chart.x(row) > 0])
            for name, chart in CHARTS.items()
            if any(chart.x(row) > 0 for row in good)
        }
        for key in dict.fromkeys(line.key for line in swept):
            figures[f"scaling-{key}"] = _scaling(key, [s for s in swept if s.key == key])
        return [_saved(name, figure, folder) for name, figure in figures.items()]


def batch(row: PlainRow) -> int:
    """How many samples one call of the row's times runs."""
    first = next(iter(row["shape"].values()))
    return int(first[0][0] if isinstance(first[0], list) else first[0])


def _against(chart: Chart, rows: Sequence[PlainRow]) -> "Figure":
    """The rows' points, hollow where a time was reached once only, and the machines' roofs."""
    figure, axes = _axes(chart.title, chart.x_title, chart.y_title, len(rows))
    for i, layout in enumerate(sorted({row["layout"] for row in rows})):
        same = [row for row in rows if row["layout"] == layout]
        fills = [f"C{i}" if row["latency_forward_settled"] else "white" for row in same]
        points = [chart.x(row) for row in same], [chart.y(row) for row in same]
        axes.scatter(*points, s=25, edgecolors=f"C{i}", facecolors=fills)
        axes.plot([], [], "o", color=f"C{i}", label=layout)
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    xs = [low * (high / low) ** (i / 50) for i in range(51)]
    machines = dict.fromkeys((row["device"], row["dtype"]) for row in rows)
    for style, machine in zip(("-", "--", ":", "-."), machines, strict=False):
        same = [row for row in rows if (row["device"], row["dtype"]) == machine]
        rates = [max(row[key] for row in same) for key in ("roof_bandwidth", "roof_macs")]
        text = "{}, {}: {:.3g} GB/s, {:.3g} GMAC/s".format(*machine, *(r / 1e9 for r in rates))
        ys = [chart.roof(x, *rates) for x in xs]
        axes.plot(xs, ys, color=INK, lw=1.2, ls=style, label=text)
        top = max(top, 1.5 * max(ys))
    axes.set(xlim=(low, high), ylim=(bottom, top))
    figure.legend(loc="outside lower left", ncols=3)
    figure.draw_without_rendering()  # what stands where is known from now on
    figure.set_layout_engine("none")
    taken = [_around(axes, chart.x(row), chart.y(row)) for row in rows]
    named = list({row["block"]: row for row in rows}.values()) if len(rows) > NAMED else rows
    for row in named:
        name = row["block"] if len(rows) > NAMED else label(row, rows)
        taken.append(_label(axes, (chart.x(row), chart.y(row)), name, taken))
    return figure


def _scaling(key: str, swept: Sequence[Line]) -> "Figure":
    figure, axes = _axes(f"Scaling with {key}", key, "forward pass, ms", len(swept))
    everyone = [line.rows[0] for line in swept]
    for line in swept:
        times = [row["latency_forward_ms"] for row in line.rows]
        name = label(line.rows[0], everyone).replace("$", r"\$")
        text = f"{name} ~ {key}^{growth(line.values, times).exponent:.2f}"
        axes.plot(line.values, times, marker="o", ms=3, label=text)
    ticks = sorted({value for line in swept for value in line.values})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    figure.legend(loc="outside right upper")
    return figure


def _axes(title: str, x: str, y: str, count: int) -> "tuple[Figure, Axes]":
    """Axes of a new figure, logarithmic both ways, taller for more points."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    height = 5.5 * max(1.0, min(count, 100) / 30) ** 0.5
    figure = Figure(figsize=(8.5, height), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    axes.margins(0.1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is axes.yaxis else (1,)))
        axis.set_major_formatter(lambda value, _: amount(value))
        axis.set_minor_formatter(NullFormatter())
    return figure, axes


def _around(axes: "Axes", x: float, y: float) -> "Bbox":
    """The box that a point covers."""
    from matplotlib.transforms import Bbox

    right, up = axes.transData.transform((x, y))
    return Bbox.from_extents(right - 4, up - 4, right + 4, up + 4)


def _label(axes: "Axes", at: tuple[float, float], name: str, taken: "list[Bbox]") -> "Bbox":
    """Write a name right beside its point, where it covers the fewest others; returns its box."""
    text = axes.annotate(name, at, (0, 0), textcoords="offset points", parse_math=False)
    text.set(ha="center", va="center", fontsize=7)
    centered = text.get_window_extent()
    steps = centered.width / 2 + 6, centered.height / 2 + 4
    shifts = [(across * steps[0], up * steps[1]) for across, up in PLACES]
    best = min(shifts, key=lambda shift: centered.translated(*shift).count_overlaps(taken))
    points = 72 / axes.figure.dpi  # of the page, which files of any resolution share
    text.set_position((best[0] * points, best[1] * points))
    return centered.translated(*best)


def _saved(name: str, figure: "Figure", folder: Path) -> Picture:
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    (folder / f"{name}.svg").write_text(text.getvalue(), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=130)
    return Picture(name, figure.axes[0].get_title(loc="left"), text.getvalue())
