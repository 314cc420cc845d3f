"""Labels of points in a plot, set where they cover neither each other nor a point."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import BboxBase

INK = "#1b1b1c"  # of text, axes and leaders; a page puts its own in its place
Spot = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels
MARKER = 4.0  # pixels from the middle of a marker to its edge
STRANGE = 9.0  # pixels that another point's label keeps from the middle of a marker
LEADER = 14.0  # a label further away than this is joined to its point by a line


def beside(
    axes: "Axes",
    spots: Sequence[Spot],
    names: Sequence[str],
    bars: Sequence[tuple[float, float, float]],
) -> None:
    """Name each spot (in data coordinates) at the nearest free place, crowded ones first.

    Labels keep off each other and the error bars `(x, low, high)`. The limits of the
    axes must be final: what is free is decided in pixels.
    """
    pixels = [_pixel(axes, spot) for spot in spots]
    taken = [_around_bar(axes, *bar) for bar in bars]
    inside = _box(axes.get_window_extent())
    for i in sorted(range(len(spots)), key=lambda i: -_crowd(pixels[i], pixels)):
        text = _text(axes, spots[i], names[i])
        size = text.get_window_extent()
        strange = [_square(pixel) for pixel in pixels if pixel != pixels[i]]
        far, box = _free(pixels[i], size.width, size.height, taken + strange, inside)
        taken.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        shift = [(m - p) * 72 / axes.figure.dpi for m, p in zip(middle, pixels[i], strict=True)]
        text.set_position((shift[0], shift[1]))
        text.arrow_patch.set_visible(far > LEADER)


def stacked(axes: "Axes", ends: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Name the ends of lines in a column right of the axes, each joined to its line."""
    pixels = axes.transData.transform(ends)
    height = 13.0 * axes.figure.dpi / 100
    level = -math.inf
    for i in sorted(range(len(ends)), key=lambda i: float(pixels[i][1])):
        level = max(level + height, float(pixels[i][1]))
        across = axes.transAxes.inverted().transform((0, level))[1]
        axes.annotate(
            names[i],
            ends[i],
            xytext=(1.04, across),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.4, "alpha": 0.6, "shrinkB": 3},
        )


def _text(axes: "Axes", spot: tuple[float, float], name: str) -> Any:
    return axes.annotate(
        name,
        spot,
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=8,
        ha="center",
        va="center",
        parse_math=False,
        arrowprops={
            "arrowstyle": "-",
            "color": INK,
            "lw": 0.4,
            "alpha": 0.6,
            "shrinkA": 1,
            "shrinkB": 3,
        },
    )


def _pixel(axes: "Axes", spot: Spot) -> Spot:
    x, y = axes.transData.transform(spot)
    return float(x), float(y)


def _around_bar(axes: "Axes", x: float, low: float, high: float) -> Box:
    (across, a), (_, b) = _pixel(axes, (x, low)), _pixel(axes, (x, high))
    return across - MARKER, min(a, b) - MARKER, across + MARKER, max(a, b) + MARKER


def _square(at: Spot) -> Box:
    return at[0] - STRANGE, at[1] - STRANGE, at[0] + STRANGE, at[1] + STRANGE


def _box(extent: "BboxBase") -> Box:
    return float(extent.x0), float(extent.y0), float(extent.x1), float(extent.y1)


def _free(
    at: Spot, width: float, height: float, taken: Sequence[Box], inside: Box
) -> tuple[float, Box]:
    """The nearest box of that size that is free, and how far from the point it lies."""
    for far, box in _around(at, width, height):
        if _within(box, inside) and not any(_overlap(box, other) for other in taken):
            return far, box
    return 0.0, next(_around(at, width, height))[1]


def _around(at: Spot, width: float, height: float) -> Iterator[tuple[float, Box]]:
    """Boxes around a point, nearest first: right, left, above, below, then the slants."""
    turns = (0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240)
    for far in (6.0, 10.0, *range(16, 400, 8)):
        for turn in turns:
            across, up = math.cos(math.radians(turn)), math.sin(math.radians(turn))
            x = at[0] + across * (far + width / 2)
            y = at[1] + up * (far + height / 2)
            yield far, (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _crowd(at: Spot, others: Sequence[Spot]) -> int:
    return sum(abs(at[0] - x) < 80 and abs(at[1] - y) < 40 for x, y in others)


def _within(box: Box, frame: Box) -> bool:
    return frame[0] <= box[0] and frame[1] <= box[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
