"""The table and the chart of `peers.py`, from its rows."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RATIOS = {
    "forward": "forward",
    "training": "training step",
    "theirs_compiled": "theirs compiled",
    "compiled": "both compiled",
}
COLUMNS = ("block", "peer", "shape", "outputs", *RATIOS.values(), "saved")


def markdown(rows: Sequence[Row]) -> str:
    """What the columns are, one line per peer and shape, geometric means, and the errors."""
    good = [row for row in rows if "error" not in row]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|---|---|" + "---:|" * (len(RATIOS) + 1)]
    lines += [
        f"| {row['block']} | {row['peer']} ({row['version']}) | {_shapes(row)} | {row['outputs']} "
        f"| {' | '.join(_ratio(row.get(key)) for key in RATIOS)} | {_saved(row)} |"
        for row in good
    ]
    lines += [f"\n{row['block']}: {row['peer']}: {row['error']}" for row in rows if "error" in row]
    return "\n".join((*_heading(good), "", *lines)) + "\n"


def line(row: Row) -> str:
    """A row in a few words, to be printed as soon as it is measured."""
    said = row.get("error") or "; ".join(
        (
            f"{_shapes(row)}, {row['outputs']}",
            *(f"{title} {_ratio(row[key])}" for key, title in RATIOS.items() if key in row),
            f"saved {_saved(row)}",
        )
    )
    return f"{row['block']}: {row['peer']}: {said}"


def _heading(rows: Sequence[Row]) -> Iterator[str]:
    if rows:
        first = rows[0]
        yield (
            f"{first['device']}, float32, {first['threads']} threads, torch {first['torch']}, "
            f"attnzoo {first['attnzoo']}; {first['machine']}. Written by `{first['command']}`."
        )
    yield (
        "Ratios are their time over ours, each the minimum of alternating samples; in brackets the "
        "range that the null copy of ours leaves open, `=` where it contains 1 or the ratio is "
        "within 3 %. `theirs compiled` is their compiled training step over the better of our "
        "eager and compiled one. Outputs: `equal` where outputs and input gradients agree with the "
        "same weights; `not comparable` where the weights do not fit. `saved` is what we keep for "
        "the backward pass over what they keep."
    )


def _ratio(timed: Row | None) -> str:
    if timed is None:
        return ""
    drift = abs(math.log(timed["null"]))
    low, high = (timed["ratio"] * math.exp(sign * drift) for sign in (-1, 1))
    return f"{timed['ratio']:.2f} ({low:.2f} to {high:.2f}){' =' * timed['tie']}"


def _saved(row: Row) -> str:
    ours, theirs = row["saved_bytes"]
    return f"{ours / theirs:.2f}" if theirs else "none"


def _shapes(row: Row) -> str:
    return " + ".join("x".join(map(str, shape)) for shape in row["shape"].values())


def chart(rows: Sequence[Row], path: Path) -> None:
    """Bars of the training steps' ratios, longest first, as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = [row for row in rows if "error" not in row and row["outputs"] == "equal"]
    good.sort(key=lambda row: float(row["training"]["ratio"]))
    figure, axes = pyplot.subplots(figsize=(7, 1 + 0.2 * len(good)), layout="constrained")
    axes.barh(
        [f"{row['block']} {_shapes(row)}" for row in good],
        [row["training"]["ratio"] for row in good],
    )
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="authors' time / ours, training step")
    axes.tick_params(axis="y", labelsize=6)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
