"""The table as pictures: latency against work, scaling lines, the roofline chart.

Each is written as SVG and PNG. Nothing in them depends on the time, the display or the user's
matplotlib settings, so the same rows give the same SVG, byte for byte.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .columns import PlainRow, amount, label
from .labels import INK, beside, stacked
from .scaling import Line, growth, lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
        charts = {"latency-macs": _against_macs(good), "latency-bytes": _against_bytes(good)}
        if any(row.get("roof_bandwidth") and row["macs"] for row in good):
            charts["roofline"] = _roofline(good)
        swept = lines(good)
        for key in dict.fromkeys(line.key for line in swept):
            charts[f"scaling-{key}"] = _scaling(key, [s for s in swept if s.key == key])
        return [_saved(name, figure, folder) for name, figure in charts.items()]


def batch(row: PlainRow) -> int:
    """How many samples one call of the row's times runs."""
    first = next(iter(row["shape"].values()))
    return int(first[0][0] if isinstance(first[0], list) else first[0])


def _against_macs(rows: Sequence[PlainRow]) -> "Figure":
    return _against(
        rows,
        lambda row: row["macs"] * batch(row),
        "Latency against multiply-adds",
        "MACs of the forward pass, whole batch",
        ("roof_macs", "all MACs", "GMAC/s"),
    )


def _against_bytes(rows: Sequence[PlainRow]) -> "Figure":
    return _against(
        rows,
        lambda row: row["bytes_forward"],
        "Latency against minimum bytes",
        "bytes any implementation must move in the forward pass, whole batch",
        ("roof_bandwidth", "all bytes", "GB/s"),
    )


def _against(
    rows: Sequence[PlainRow],
    work: Callable[[PlainRow], float],
    title: str,
    said: str,
    roof: tuple[str, str, str],
) -> "Figure":
    """Latency against some work, with the line of those that do it at the rate of a roof."""
    axes = _axes(title, said, "forward pass, ms (20th to 80th percentile)", len(rows))
    _scatter(axes, rows, work, _latency)
    key, everything, unit = roof
    for name, rate in _roofs(rows, key).items():
        _floor(axes, rate, f"{everything} at {rate / 1e9:.3g} {unit}, {name}")
    return _finished(axes, rows, work, _latency)


def _roofline(rows: Sequence[PlainRow]) -> "Figure":
    working = [row for row in rows if row["macs"] and row.get("roof_bandwidth")]
    axes = _axes(
        "Roofline of the forward pass",
        "MACs per minimum byte",
        "MAC/s",
        len(working),
    )
    _scatter(axes, working, _intensity, _rate)
    low, high = axes.get_xlim()
    bandwidths = _roofs(working, "roof_bandwidth")
    axes.set_ylim(top=2 * max(axes.get_ylim()[1], *_roofs(working, "roof_macs").values()))
    for i, (name, peak) in enumerate(_roofs(working, "roof_macs").items()):
        slope = bandwidths[name]
        xs = sorted({low, min(max(peak / slope, low), high), high})
        axes.plot(
            xs,
            [min(slope * x, peak) for x in xs],
            color=INK,
            lw=1.2,
            ls=("-", "--", ":", "-.")[i % 4],
            label=f"{slope / 1e9:.3g} GB/s, {peak / 1e9:.3g} GMAC/s, {name}",
        )
    axes.set_xlim(low, high)
    return _finished(axes, working, _intensity, _rate)


def _scaling(key: str, swept: Sequence[Line]) -> "Figure":
    axes = _axes(f"Scaling with {key}", key, "forward pass, ms", len(swept))
    names, ends = [], []
    everyone = [line.rows[0] for line in swept]
    for i, line in enumerate(swept):
        times = [_latency(row) for row in line.rows]
        low, high = ([_latency(row, end) for row in line.rows] for end in ("_p20", "_p80"))
        color = COLORS[i % len(COLORS)]
        axes.plot(
            line.values, times, marker="o", ms=3, color=color, ls=("-", "--", ":")[i // 7 % 3]
        )
        axes.fill_between(line.values, low, high, color=color, alpha=0.15, lw=0)
        names.append(f"{label(line.rows[0], everyone)} ~ {key}^{growth(line.values, times):.2f}")
        ends.append((line.values[-1], times[-1]))
    ticks = sorted({value for line in swept for value in line.values})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    _figure(axes).subplots_adjust(right=0.73)
    stacked(axes, ends, names)
    return _figure(axes)


def _axes(title: str, x: str, y: str, count: int) -> "Axes":
    """Axes of a new figure, logarithmic both ways, taller for more points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(8.5, 5.5 * max(1.0, min(count, 100) / 30) ** 0.5))
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.09, right=0.97, bottom=0.19, top=0.93)
    axes = figure.add_subplot(xscale="log", yscale="log")
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is axes.yaxis else (1,)))
        axis.set_major_formatter(lambda value, _: amount(value))
        axis.set_minor_formatter(NullFormatter())
    return axes


def _scatter(
    axes: "Axes", rows: Sequence[PlainRow], x: Callable[[PlainRow], float], y: Callable[..., float]
) -> None:
    """The rows' points with their spread, colored by layout, hollow where launches rule."""
    kinds = sorted({row["layout"] for row in rows})
    if any(x(row) == 0 for row in rows):
        axes.set_xscale("symlog", linthresh=1)
    for row in rows:
        at, ends = y(row), sorted((y(row, "_p20"), y(row, "_p80")))
        color = COLORS[kinds.index(row["layout"]) % len(COLORS)]
        axes.errorbar(
            x(row),
            at,
            [[max(at - ends[0], 0)], [max(ends[1] - at, 0)]],
            fmt="o",
            ms=5,
            color=color,
            lw=1,
            mfc="white" if row.get("roof_forward") == "launch" else color,
        )
    for kind in kinds:
        axes.plot([], [], "o", color=COLORS[kinds.index(kind) % len(COLORS)], label=kind)
    if any(row.get("roof_forward") == "launch" for row in rows):
        axes.plot([], [], "o", color=INK, mfc="white", label="hollow: ruled by launch overhead")
    heights = [y(row, end) for row in rows for end in ("", "_p20", "_p80")]
    axes.set(xlim=_limits([x(row) for row in rows]), ylim=_limits(heights))


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a logarithmic axis, with room for labels; a zero among the values shows."""
    low, high = min(values), max(values)
    if low <= 0:
        return -0.5, max(high, 1) * 3
    room = max((high / low) ** 0.1, 1.5)
    return low / room, high * room


def _floor(axes: "Axes", rate: float, name: str) -> None:
    """The line of those that do their work at this rate, kept from widening the picture."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.plot(limits[0], [1e3 * max(x, 0) / rate for x in limits[0]], color=INK, lw=1, label=name)
    axes.set(xlim=limits[0], ylim=limits[1])


def _finished(
    axes: "Axes", rows: Sequence[PlainRow], x: Callable[[PlainRow], float], y: Callable[..., float]
) -> "Figure":
    """The figure with its legend and the names of its points."""
    named = list({row["block"]: row for row in rows}.values()) if len(rows) > NAMED else rows
    names = [row["block"] if len(rows) > NAMED else label(row, rows) for row in named]
    bars = [(x(row), y(row, "_p20"), y(row, "_p80")) for row in rows]
    beside(axes, [(x(row), y(row)) for row in named], names, bars)
    _figure(axes).legend(loc="lower left", bbox_to_anchor=(0.08, 0), ncols=3)
    return _figure(axes)


def _saved(name: str, figure: "Figure", folder: Path) -> Picture:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    (folder / f"{name}.svg").write_text(text.getvalue(), encoding="utf-8")
    figure.savefig(folder / f"{name}.png", dpi=130)
    return Picture(name, figure.axes[0].get_title(loc="left"), text.getvalue())


def _figure(axes: "Axes") -> "Figure":
    figure: Figure = axes.figure  # type: ignore[assignment]  # none is a SubFigure here
    return figure


def _latency(row: PlainRow, end: str = "") -> float:
    return float(row[f"latency_forward{end}_ms"])


def _work(row: PlainRow) -> float:
    return float(row.get("macs_executed") or row["macs"]) * batch(row)


def _intensity(row: PlainRow) -> float:
    return _work(row) / float(row["bytes_forward"])


def _rate(row: PlainRow, end: str = "") -> float:
    return _work(row) / _latency(row, end) * 1e3


def _roofs(rows: Sequence[PlainRow], key: str) -> dict[str, float]:
    """The largest measured roof of each device and dtype."""
    found: dict[str, float] = {}
    for row in rows:
        if row.get(key):
            name = f"{row['device']} {row['dtype']}"
            found[name] = max(found.get(name, 0.0), float(row[key]))
    return found
