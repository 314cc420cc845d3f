"""`attnzoo.survey`: what each block would cost in a network, and what it does for the loss."""

import copy
import functools
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import torch
from torch import nn

from ..bench.timing.clock import cpu_threads
from ..insertion import insert
from ..insertion.host import How
from ..insertion.matching import Where, matches
from ..insertion.probe import arguments
from ..registry import find
from ..registry import names as all_names
from ..validation import check
from ..validation.tensors import tensors
from . import budget as budgets
from . import places
from .report import Candidate, Misfit, Survey
from .runner import Options, Runner
from .training import Data, Optimizer, Plan

Names = Iterable[str] | Mapping[str, Mapping[str, Any]]
Progress = Callable[[int, int, str], None]  # how many are done, of how many, and what runs now


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of `data=`, unless another is given."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def survey(
    model: nn.Module,
    where: Where = "auto",
    *,
    example_input: Any,
    names: Names | None = None,
    how: How = "after",
    residual: bool = False,
    zero_init: bool = False,
    train: bool = True,
    compiled: bool = False,
    device: str | torch.device | None = None,
    threads: int = 1,
    seconds: float = 0.5,
    budget: str | Mapping[str, str | float] | None = None,
    data: Data | None = None,
    steps: int = 200,
    seeds: int = 3,
    optimizer: Optimizer = adamw,
    progress: Progress | None = None,
) -> Survey:
    """Measure what each block costs in a network: one after the other, each in a copy.

        report = attnzoo.survey(model, "layer[1-4].*.bn2", example_input=x)
        print(report)

    Times are ratios to the plain network's, whose samples alternate with those of the network with
    the block, so that they hold on a busy machine. The model is not changed.

    Args:
        model: the network.
        where: the places, as `attnzoo.insert` takes them, or "auto": what
            the first rule that finds any proposes, of "residual" (after the last norm of each
            residual branch), "attention", "temporal" (layers of a stack over time), "branch"
            (residual branches that end otherwise) and "stage". "auto:stage" asks for one rule.
        example_input: a tensor, a tuple of positional or a dict of keyword arguments; its batch
            and sizes are those that are timed.
        names: the blocks; a dict gives each its keywords. Default: all of `attnzoo.names()`.
        how, residual, zero_init: as `attnzoo.insert` takes them.
        train: measure the training step and the bytes that autograd saves, too.
        compiled: measure both under `torch.compile`, too.
        device: where to measure; default: where the model's parameters are.
        threads: of the CPU's operators. One is steadiest where other processes run, too.
        seconds: of samples for each network and pass.
        budget: limits, such as "latency=5%,parameters=1M"; each row says whether it is inside.
            Keys: parameters, macs, latency (of inference), training, memory.
        data: a function that returns an iterator of (inputs, loss): inputs as `example_input`, and
            a function from the network's output to a scalar. If given, the network is trained with
            and without each block, from the same weights and on the same batches.
        steps, seeds: of that training. The plain network also trains for as long as each
            candidate takes.
        optimizer: a function from parameters to an optimizer; default: AdamW with lr=1e-3.
        progress: called with the number of blocks done, their total, and the next one's name.

    Returns:
        The rows, sorted by cost, and the blocks that do not fit with the reason. Ctrl-C ends the
        survey early; the rows so far are returned.

    Raises:
        ValueError: `where` matches nothing, the model does not accept `example_input`, or a limit
            of the budget is none.
        TypeError: an argument has the wrong type.
    """
    check.choice("how", how, get_args(How))
    check.flag(train=train, compiled=compiled, residual=residual, zero_init=zero_init)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    for key, value in {"threads": threads, "steps": steps, "seeds": seeds}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{key}={value!r} must be an int of at least 1")
    configs = _configs(names)
    limits = budgets.parsed(budget)
    needs = ("data=", data), ("budget's training and memory", _of_training(limits))
    for what, asked in needs:
        if asked and not train:
            raise ValueError(f"{what} needs the training step: train=True")
    at = _device(model, device)
    rule, proposed, paths = _places(model, where, example_input)
    plan = Plan(data, steps, seeds, optimizer, at) if data is not None else None
    options = Options(train, compiled, seconds, limits, at, plan)
    place = functools.partial(
        insert,
        where=lambda path, module: path in paths,
        how=how,
        residual=residual,
        zero_init=zero_init,
        example_input=example_input,
    )
    rows: list[Candidate] = []
    misfits: list[Misfit] = []
    waiting = dict(configs)
    with torch.random.fork_rng([at] if at.type == "cuda" else []), cpu_threads(threads):
        runner = Runner(copy.deepcopy(model), example_input, place, options)
        try:
            for name, config in configs.items():
                if progress:
                    progress(len(configs) - len(waiting), len(configs), name)
                found = runner.candidate(name, config)
                (rows if isinstance(found, Candidate) else misfits).append(found)  # type: ignore[arg-type]
                del waiting[name]
        except KeyboardInterrupt:
            pass
    return Survey(
        rows=tuple(sorted(rows, key=_cost)),
        misfits=tuple(misfits),
        pending=tuple(waiting),
        paths=paths,
        rule=rule,
        other_rules={key: value for key, value in proposed.items() if key != rule},
        how=how,
        budget=limits,
        setting=_setting(at, threads, example_input),
        parameters=sum(p.numel() for p in model.parameters()),
        macs=runner.macs,
        inference_ms=min((row.inference.plain_ms for row in rows), default=None),
        training_ms=min((row.training.plain_ms for row in rows if row.training), default=None),
        saved_bytes=runner.saved,
    )


def _of_training(limits: tuple[budgets.Limit, ...]) -> bool:
    return any(limit.key in ("training", "memory") for limit in limits)


def _cost(row: Candidate) -> float:
    return (row.training or row.inference).value


def _configs(names: Names | None) -> dict[str, Mapping[str, Any]]:
    if isinstance(names, str):
        raise TypeError(f"names={names!r} must be a list of names: names=[{names!r}]")
    if names is None:
        names = all_names()
    known = names if isinstance(names, Mapping) else {name: {} for name in names}
    return {find(name).name: config for name, config in known.items()}


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if device is None:
        return next((p.device for p in model.parameters()), torch.device("cpu"))
    check.device("device", device)
    return torch.device(device)


def _places(
    model: nn.Module, where: Where, example: Any
) -> tuple[str | None, places.Places, tuple[str, ...]]:
    """The rule and what all rules propose, for where="auto", and the paths."""
    if isinstance(where, str) and where.partition(":")[0] == "auto":
        proposed = places.proposed(model, example)
        rule = where.partition(":")[2] or next(iter(proposed))
        if rule not in places.RULES:
            raise ValueError(f"where={where!r} names no rule; take {', '.join(places.RULES)}")
        if rule not in proposed:
            raise ValueError(f"where={where!r} finds no place; {', '.join(proposed)} would")
        return rule, proposed, proposed[rule]
    return None, {}, tuple(matches(model, where))


def _setting(device: torch.device, threads: int, example: Any) -> dict[str, Any]:
    shapes = ["x".join(map(str, t.shape)) for t in tensors(*arguments(example))]
    return {
        "device": str(device),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "input": " + ".join(shapes),
    }
