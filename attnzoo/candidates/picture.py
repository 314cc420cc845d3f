"""A survey as a picture: one cost of every block against another, each labelled."""

from pathlib import Path

from .report import Candidate, Survey


def draw(survey: Survey, path: Path) -> None:
    """Write the picture; the ending of the path decides the format.

    Blocks are points: the time of a training step against that of inference, both as ratios to the
    plain network, with their intervals; the size of a point grows with the parameters added.

    Raises:
        ValueError: the survey has no rows.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    from ..bench.report.plots import STYLE

    if not survey.rows:
        raise ValueError("the survey has no rows to draw; its misfits say why")
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(8.5, 5.5), layout="constrained")
        train = all(row.training for row in survey.rows)
        axes = figure.add_subplot(
            title=f"Cost of a block {survey.how} each of {len(survey.paths)} places",
            xlabel="time of inference, ratio to the plain network",
            ylabel="time of a training step, ratio to the plain network"
            if train
            else "parameters added",
        )
        points = [(row.inference.value, _height(row, train)) for row in survey.rows]
        for row, (x, y) in zip(survey.rows, points, strict=True):
            across = [[x - row.inference.low], [row.inference.high - x]]
            up = (
                [[y - row.training.low], [row.training.high - y]]
                if train and row.training
                else None
            )
            axes.errorbar(x, y, xerr=across, yerr=up, fmt="none", ecolor="#7f7f7f", lw=0.6)
        shares = [max(0, row.parameters) / max(1, survey.parameters) for row in survey.rows]
        xs, ys = zip(*points, strict=True)
        axes.scatter(xs, ys, s=[12 + 100 * min(1.0, s) for s in shares], color="C0", zorder=3)
        axes.axvline(1.0, color="#7f7f7f", lw=0.8)
        if train:
            axes.axhline(1.0, color="#7f7f7f", lw=0.8)
        axes.margins(0.1)
        order = sorted(range(len(points)), key=lambda i: points[i][1])
        for place, i in enumerate(order):  # neighbors in height have their names on either side
            side = ("left", 5) if place % 2 else ("right", -5)
            text = axes.annotate(
                survey.rows[i].block, points[i], (side[1], 0), textcoords="offset points"
            )
            text.set(ha=side[0], va="center", fontsize=7)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _height(row: Candidate, train: bool) -> float:
    return row.training.value if train and row.training else float(row.parameters)
