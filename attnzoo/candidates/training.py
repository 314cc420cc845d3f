"""Trains the network with and without a block from the same start, on the same batches."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..insertion.probe import arguments
from ..validation.tensors import map_tensors

Loss = Callable[[Any], Tensor]  # of the network's output
Data = Callable[[], Iterator[tuple[Any, Loss]]]  # endless, or as long as the training
Optimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]

TAIL = 0.1  # of the steps, at the end: their mean is the loss that is reported
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


class Plan(NamedTuple):
    """How candidates are trained."""

    data: Data
    steps: int
    seeds: int
    optimizer: Optimizer
    device: torch.device


class Learning(NamedTuple):
    """Losses at the end of the training, as mean over seeds and standard deviation."""

    steps: int
    loss: float
    spread: float
    plain_loss: float  # of the plain network after as many steps
    plain_spread: float
    matched_steps: int  # that the plain network does in the same time
    matched_loss: float
    matched_spread: float
    difference: float  # loss - matched_loss, paired by seed, and half its 95 % interval
    margin: float

    @property
    def verdict(self) -> str:
        """Lower or higher than the plain network after the same time, or no difference seen."""
        if not abs(self.difference) > self.margin:
            return "no difference seen"
        return "lower" if self.difference < 0 else "higher"

    def cells(self) -> dict[str, str]:
        """Columns of the table."""
        return {
            "loss": f"{self.loss:.4g} ±{self.spread:.2g}",
            "plain, same steps": f"{self.plain_loss:.4g} ±{self.plain_spread:.2g}",
            "plain, same time": f"{self.matched_loss:.4g} ±{self.matched_spread:.2g}",
            "against same time": self.verdict,
        }


class Trainer:
    """One network and one seed; trains on where it stopped."""

    def __init__(self, model: nn.Module, plan: Plan, seed: int) -> None:
        torch.manual_seed(seed)
        self.model, self.plan = model.to(plan.device).train(), plan
        self.optimizer = plan.optimizer(p for p in model.parameters() if p.requires_grad)
        self.batches = plan.data()
        self.losses: list[float] = []
        self.state = torch.get_rng_state()

    def loss_after(self, steps: int) -> float:
        """The mean loss of the last tenth of so many steps."""
        torch.set_rng_state(self.state)
        while len(self.losses) < steps:
            self.losses.append(self._step())
        self.state = torch.get_rng_state()
        return statistics.fmean(self.losses[steps - max(1, round(TAIL * steps)) : steps])

    def _step(self) -> float:
        try:
            batch, loss_of = next(self.batches)
        except StopIteration:
            raise ValueError(
                f"data() ended after {len(self.losses)} batches, and the plain network needs more "
                "steps to match the time of a slower one; let it yield without end"
            ) from None
        args, kwargs = arguments(batch)
        args, kwargs = map_tensors(lambda t: t.to(self.plan.device), (args, kwargs))
        self.optimizer.zero_grad()
        loss = loss_of(self.model(*args, **kwargs))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())


def trained(
    make: Callable[[int], nn.Module], plain: Sequence[Trainer], plan: Plan, ratio: float
) -> Learning:
    """Train one candidate for each seed, and the plain networks for as long.

    Args:
        make: a fresh copy of the network with the block, initialized under a seed.
        plain: the plain networks, one for each seed.
        plan: data, steps, optimizer.
        ratio: the candidate's time of a training step over the plain network's.
    """
    matched_steps = max(1, round(ratio * plan.steps))
    runs = [Trainer(make(seed), plan, seed) for seed in range(plan.seeds)]
    losses = [run.loss_after(plan.steps) for run in runs]
    same = [run.loss_after(plan.steps) for run in plain]
    matched = [run.loss_after(matched_steps) for run in plain]
    gaps = [a - b for a, b in zip(losses, matched, strict=True)]
    margin = math.inf
    if len(gaps) > 1:
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        margin = STUDENT.get(len(gaps), 2.26) * error
    return Learning(
        plan.steps,
        *_mean_and_spread(losses),
        *_mean_and_spread(same),
        matched_steps,
        *_mean_and_spread(matched),
        statistics.fmean(gaps),
        margin,
    )


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan
