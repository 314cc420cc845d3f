"""The table as pictures: latency against work, scaling lines, the roofline chart.

Each is written as SVG and PNG. Nothing in them depends on the time, the display or the user's
matplotlib settings, so the same rows give the same SVG, byte for byte.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .columns import PlainRow, amount, label
from .growth import Line, growth, lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1b1c"  # of text and axes; a page puts its own in its place
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f")
STYLE = {
    "svg.hashsalt": "attnzoo",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
NAMED = 40  # more points than this, and each block is named once
# Where a label may stand beside its point: shift in points of the page, and its alignment.
PLACES = (
    (5, 0, "left", "center"),
    (-5, 0, "right", "center"),
    (0, 5, "center", "bottom"),
    (0, -5, "center", "top"),
    (4, 4, "left", "bottom"),
    (-4, 4, "right", "bottom"),
    (4, -4, "left", "top"),
    (-4, -4, "right", "top"),
)
Value = Callable[[PlainRow], float]


class Picture(NamedTuple):
    """One figure."""

    name: str  # of its files
    title: str
    svg: str


def pictures(rows: Iterable[PlainRow], folder: Path) -> list[Picture]:
    """Draw what the rows allow into `folder`, as SVG and PNG, and return the SVGs.

    Rows that failed are left out; a chart without rows is not drawn.
    """
    import matplotlib.style  # a second, for those who draw

    good = [row for row in rows if "error" not in row]
    if not good:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context(["default", STYLE]):
        charts = {
            "latency-macs": _against(
                good,
                lambda row: row["macs"] * batch(row),
                "Latency against multiply-adds",
                "MACs of the forward pass, whole batch",
                ("roof_macs", "all MACs", "GMAC/s"),
            ),
            "latency-bytes": _against(
                good,
                lambda row: row["bytes_forward"],
                "Latency against minimum bytes",
                "bytes any implementation must move in the forward pass, whole batch",
                ("roof_bandwidth", "all bytes", "GB/s"),
            ),
        }
        if any(row["macs_executed"] for row in good):
            charts["roofline"] = _roofline([row for row in good if row["macs_executed"]])
        swept = lines(good)
        for key in dict.fromkeys(line.key for line in swept):
            charts[f"scaling-{key}"] = _scaling(key, [s for s in swept if s.key == key])
        return [_saved(name, figure, folder) for name, figure in charts.items()]


def batch(row: PlainRow) -> int:
    """How many samples one call of the row's times runs."""
    first = next(iter(row["shape"].values()))
    return int(first[0][0] if isinstance(first[0], list) else first[0])


def _against(
    rows: Sequence[PlainRow], work: Value, title: str, x: str, roof: tuple[str, str, str]
) -> "Figure":
    """Latency against some work, with the line of those that do it at the rate of a roof."""
    axes = _axes(title, x, "forward pass, ms", len(rows))
    _scatter(axes, rows, work, _latency)
    key, everything, unit = roof
    limits = axes.get_xlim(), axes.get_ylim()
    for name, rate in _roofs(rows, key).items():
        text = f"{everything} at {rate / 1e9:.3g} {unit}, {name}"
        axes.plot(limits[0], [1e3 * max(v, 0) / rate for v in limits[0]], color=INK, label=text)
    axes.set(xlim=limits[0], ylim=limits[1])
    return _finished(axes, rows, work, _latency)


def _roofline(rows: Sequence[PlainRow]) -> "Figure":
    axes = _axes("Roofline of the forward pass", "MACs per minimum byte", "MAC/s", len(rows))
    _scatter(axes, rows, _intensity, _rate)
    low, high = axes.get_xlim()
    bandwidths, peaks = _roofs(rows, "roof_bandwidth"), _roofs(rows, "roof_macs")
    axes.set_ylim(top=2 * max(axes.get_ylim()[1], *peaks.values()))
    for i, (name, peak) in enumerate(peaks.items()):
        slope = bandwidths[name]
        xs = sorted({low, min(max(peak / slope, low), high), high})
        style = ("-", "--", ":", "-.")[i % 4]
        text = f"{slope / 1e9:.3g} GB/s, {peak / 1e9:.3g} GMAC/s, {name}"
        axes.plot(xs, [min(slope * x, peak) for x in xs], color=INK, lw=1.2, ls=style, label=text)
    axes.set_xlim(low, high)
    return _finished(axes, rows, _intensity, _rate)


def _scaling(key: str, swept: Sequence[Line]) -> "Figure":
    axes = _axes(f"Scaling with {key}", key, "forward pass, ms", len(swept))
    everyone = [line.rows[0] for line in swept]
    for i, line in enumerate(swept):
        times = [_latency(row) for row in line.rows]
        slope = growth(line.values, times).exponent
        axes.plot(
            line.values,
            times,
            marker="o",
            ms=3,
            color=COLORS[i % len(COLORS)],
            ls=("-", "--", ":")[i // len(COLORS) % 3],
            label=f"{label(line.rows[0], everyone)} ~ {key}^{slope:.2f}".replace("$", r"\$"),
        )
    ticks = sorted({value for line in swept for value in line.values})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    _figure(axes).legend(loc="outside right upper")
    return _figure(axes)


def _axes(title: str, x: str, y: str, count: int) -> "Axes":
    """Axes of a new figure, logarithmic both ways, taller for more points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    height = 5.5 * max(1.0, min(count, 100) / 30) ** 0.5
    figure = Figure(figsize=(8.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", yscale="log")
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is axes.yaxis else (1,)))
        axis.set_major_formatter(lambda value, _: amount(value))
        axis.set_minor_formatter(NullFormatter())
    return axes


def _scatter(axes: "Axes", rows: Sequence[PlainRow], x: Value, y: Value) -> None:
    """The rows' points, colored by layout, hollow where a time was reached once only."""
    if any(x(row) == 0 for row in rows):
        axes.set_xscale("symlog", linthresh=1)
    for i, kind in enumerate(sorted({row["layout"] for row in rows})):
        color = COLORS[i % len(COLORS)]
        axes.plot([], [], "o", color=color, label=kind)
        for row in rows:
            if row["layout"] == kind:
                fill = color if row.get("latency_forward_settled", True) else "white"
                axes.plot(x(row), y(row), "o", ms=5, color=color, mfc=fill)
    axes.set(xlim=_limits([x(row) for row in rows]), ylim=_limits([y(row) for row in rows]))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis, with room for labels; a zero among the values shows."""
    low, high = min(values), max(values)
    if low <= 0:
        return -0.5, max(high, 1) * 3
    room = max((high / low) ** 0.1, 1.5)
    return low / room, high * room


def _finished(axes: "Axes", rows: Sequence[PlainRow], x: Value, y: Value) -> "Figure":
    """The figure with its legend and the names of its points."""
    figure = _figure(axes)
    figure.legend(loc="outside lower left", ncols=3)
    figure.draw_without_rendering()  # what stands where is known from now on
    figure.set_layout_engine("none")
    named = list({row["block"]: row for row in rows}.values()) if len(rows) > NAMED else rows
    taken: list[tuple[float, float, float, float]] = []
    for row in rows:
        px, py = axes.transData.transform((x(row), y(row)))
        taken.append((px - 4, py - 4, px + 4, py + 4))
    for row in named:
        name = row["block"] if len(rows) > NAMED else label(row, rows)
        taken.append(_label(axes, (x(row), y(row)), name, taken))
    return figure


def _label(
    axes: "Axes",
    at: tuple[float, float],
    name: str,
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Write a name right beside its point, where it covers the least; returns its box."""
    found = []
    for dx, dy, across, up in PLACES:
        text = axes.annotate(
            name,
            at,
            (dx, dy),
            textcoords="offset points",
            ha=across,
            va=up,
            fontsize=7,
            parse_math=False,
        )
        box = text.get_window_extent()
        edges = (float(box.x0), float(box.y0), float(box.x1), float(box.y1))
        found.append((sum(_shared(edges, other) for other in taken), edges, text))
    best = min(range(len(found)), key=lambda i: found[i][0])
    for i, (_, _, text) in enumerate(found):
        if i != best:
            text.remove()
    return found[best][1]


def _shared(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes have in common."""
    across, up = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(across, 0.0) * max(up, 0.0)


def _saved(name: str, figure: "Figure", folder: Path) -> Picture:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    (folder / f"{name}.svg").write_text(text.getvalue(), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=130)
    return Picture(name, figure.axes[0].get_title(loc="left"), text.getvalue())


def _figure(axes: "Axes") -> "Figure":
    figure: Figure = axes.figure  # type: ignore[assignment]  # none is a SubFigure here
    return figure


def _latency(row: PlainRow) -> float:
    return float(row["latency_forward_ms"])


def _intensity(row: PlainRow) -> float:
    return float(row["macs_executed"]) * batch(row) / float(row["bytes_forward"])


def _rate(row: PlainRow) -> float:
    return float(row["macs_executed"]) * batch(row) / _latency(row) * 1e3


def _roofs(rows: Sequence[PlainRow], key: str) -> dict[str, float]:
    """The largest measured roof of each device and dtype."""
    found: dict[str, float] = {}
    for row in rows:
        name = f"{row['device']} {row['dtype']}"
        found[name] = max(found.get(name, 0.0), float(row[key]))
    return found
