"""Measures one block after the other in copies of a network, beside a copy without it."""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ..insertion.probe import run
from ..insertion.report import Insertion
from .budget import Inside, Limit
from .network import Network
from .report import Candidate, Misfit
from .sampling import Ratio, compared
from .training import Plan, Trainer, trained


class Options(NamedTuple):
    """What is measured of every candidate."""

    train: bool
    compiled: bool
    seconds: float
    limits: tuple[Limit, ...]
    device: torch.device
    plan: Plan | None


class Runner:
    """The plain network, and what is done with every block."""

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        place: Callable[..., Insertion],
        options: Options,
    ) -> None:
        self.model, self.example, self.place, self.options = model, example, place, options
        traced = run(self.model, {}, example)
        self.macs = traced.macs // traced.batch
        self.plain = self._network(copy.deepcopy(model))
        self.saved = self._saved_bytes() if options.train else None
        self.peak = self.plain.peak_bytes() if options.train else None
        self.trainers: list[Trainer] = []
        if options.plan is not None:
            seeds = range(options.plan.seeds)
            self.trainers = [Trainer(copy.deepcopy(model), options.plan, seed) for seed in seeds]

    def _saved_bytes(self) -> int:
        try:
            return self.plain.saved_bytes()
        except Exception as error:
            raise ValueError(
                f"the model has no training step on example_input: {error}; train=False measures "
                "inference alone"
            ) from error

    def candidate(self, name: str, config: Mapping[str, Any]) -> Candidate | Misfit:
        """The row of one block, or why there is none."""
        try:
            return self._measured(name, config)
        except Exception as error:  # the network with a block may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, (ValueError, TypeError)):
                reason = f"{type(error).__name__}: {reason}"
            return Misfit(name, reason)

    def _measured(self, name: str, config: Mapping[str, Any]) -> Candidate:
        model, report = self._inserted(name, config, seed=0)
        network = self._network(model)
        row = Candidate(
            block=name,
            config=dict(config),
            places=len(report.placements),
            parameters=report.parameters,
            macs=report.macs,
            inference=self._ratio(self.plain, network, train=False),
        )
        if self.options.train:
            row = replace(
                row,
                training=self._ratio(self.plain, network, train=True),
                saved=_share(network.saved_bytes(), self.saved),
                peak=_share(network.peak_bytes(), self.peak),
            )
        if self.options.compiled:
            row = self._with_compiled(row, name, config)
        row = replace(row, inside=self._inside(row, report))
        if self.options.plan is not None:
            step = row.training or row.inference
            make = functools.partial(self._fresh, name, config)
            learning = trained(make, self.trainers, self.options.plan, step.value)
            row = replace(row, learning=learning)
        return row

    def _with_compiled(self, row: Candidate, name: str, config: Mapping[str, Any]) -> Candidate:
        torch.compiler.reset()
        plain = self._network(copy.deepcopy(self.model), True)
        network = self._network(self._inserted(name, config, seed=0)[0], True)
        return replace(
            row,
            compiled_inference=self._ratio(plain, network, train=False),
            compiled_training=self._ratio(plain, network, train=True)
            if self.options.train
            else None,
        )

    def _ratio(self, plain: Network, other: Network, train: bool) -> Ratio:
        with plain.ready(train), other.ready(train):
            a, b = (n.training() if train else n.inference() for n in (plain, other))
            a()
            b()
            return compared(a, b, self.options.seconds, wall=self.options.device.type != "cpu")

    def _inserted(
        self, name: str, config: Mapping[str, Any], seed: int
    ) -> tuple[nn.Module, Insertion]:
        model = copy.deepcopy(self.model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return model, self.place(model, name=name, **config)

    def _fresh(self, name: str, config: Mapping[str, Any], seed: int) -> nn.Module:
        return self._inserted(name, config, seed)[0]

    def _network(self, model: nn.Module, compiled: bool = False) -> Network:
        return Network(model, self.example, self.options.device, compiled)

    def _inside(self, row: Candidate, report: Insertion) -> Inside | None:
        if not self.options.limits:
            return None
        found = {limit.inside(*_added(limit, row, report)) for limit in self.options.limits}
        return "no" if "no" in found else "unsure" if "unsure" in found else "yes"


def _added(limit: Limit, row: Candidate, report: Insertion) -> tuple[float, float, float]:
    """What the block adds of a limit's quantity, with the ends of its interval."""
    counts = {
        "parameters": (row.parameters, report.network_parameters),
        "macs": (row.macs, report.network_macs),
    }
    if limit.key in counts:
        added, plain = counts[limit.key]
        value = added / plain if limit.share else float(added)
        return value, value, value
    if limit.key == "memory":
        value = (row.saved or 1.0) - 1
        return value, value, value
    ratio = row.training if limit.key == "training" and row.training else row.inference
    return ratio.value - 1, ratio.low - 1, ratio.high - 1


def _share(bytes_: int | None, plain: int | None) -> float | None:
    return bytes_ / plain if bytes_ is not None and plain else None
