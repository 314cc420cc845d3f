"""What the studies of whole networks share: training, spreads over seeds, and pictures."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn


def fit(
    net: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    *,
    rate: float = 6e-3,
    parameters: Iterable[nn.Parameter] | None = None,
) -> list[float]:
    """Take steps of Adam, with one cycle of the rate, and return the losses; ends in eval mode."""
    optimizer = torch.optim.Adam(net.parameters() if parameters is None else parameters, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    net.train()
    losses = []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
    net.eval()
    return losses


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def spread(values: Sequence[float], form: str = ".1%") -> str:
    """The mean, and the smallest and largest."""
    low, mean, high = min(values), statistics.mean(values), max(values)
    return f"{mean:{form}} ({low:{form}} to {high:{form}})"


def mean_iou(found: Tensor, wanted: Tensor, classes: int) -> float:
    """The mean over classes of intersection over union."""
    pairs = [(found == k, wanted == k) for k in range(classes)]
    each = [float((a & b).sum() / (a | b).sum().clamp(min=1)) for a, b in pairs]
    return statistics.mean(each)


def pyplot() -> Any:
    """matplotlib's, without a screen."""
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def show(place: Any, image: Any, title: str, **options: Any) -> None:
    """An image without axes."""
    place.imshow(image, interpolation="nearest", **options)
    place.set_title(title, fontsize=9)
    place.axis("off")


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=70)
    pyplot().close(figure)
