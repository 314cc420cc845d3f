"""One row of the benchmark, checked and measured; and many rows, one after the other."""

import contextlib
import functools
import gc
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..registry import Entry, Extent, Inputs, build, find
from . import correct, count, cuda, passes, roofline, timing
from .correct import WrongResultError as WrongResultError
from .row import Failure as Failure
from .row import Identity
from .row import Row as Row
from .settings import Settings as Settings
from .workload import leaves, make_inputs, stir, tensors, to_channels_last


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row to be: a block, its config as asked for, and the settings."""

    block: str
    config: Mapping[str, Any]
    settings: Settings

    def identity(self) -> str:
        """What its row or its failure will answer; for `--resume`."""
        return Failure(block=self.block, error="", known=self.known()).identity()

    def known(self) -> dict[str, Any]:
        """All fields of its identity that can be told before it runs, but version and block."""
        settings = self.settings
        fields: dict[str, Any] = {
            "config": _plain(self.config),
            "device": str(torch.empty(0, device=settings.device).device),
            "device_name": _device_name(settings.device),
            "dtype": settings.dtype,
            "autocast": settings.autocast,
            "channels_last": settings.channels_last,
            "mode": settings.mode,
            "threads": settings.threads or torch.get_num_threads(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "attnzoo": __version__,
        }
        entry = find(self.block)
        with contextlib.suppress(ValueError, TypeError):  # perform says what is wrong with it
            config = entry.bind(**self.config)
            inputs = make_inputs(entry, config, settings.extent(entry), device="meta")
            fields |= {
                "config": _plain(config),
                "layout": config.get("layout", entry.layouts[0]),
                "shape": {
                    key: [list(t.shape) for t in value]
                    if isinstance(value, list)
                    else list(value.shape)
                    for key, value in inputs.items()
                },
            }
        return fields


def tasks(
    names: Iterable[str],
    settings: Settings | Iterable[Settings],
    configs: Iterable[Mapping[str, Any]] = ({},),
) -> list[Task]:
    """The rows of a table: every block with every config and every settings, block by block.

    Args:
        names: names of `attnzoo.names()`.
        settings: one, or several, in the order of the rows.
        configs: keywords put over each block's example; a block passes over those it does not
            take, and what that leaves twice is done once.

    Raises UnknownBlockError before anything runs.
    """
    found: list[Task] = []
    several = (settings,) if isinstance(settings, Settings) else tuple(settings)
    for entry in map(find, names):
        for config in configs:
            taken = {k: v for k, v in config.items() if k in entry.signature.parameters}
            for each in several:
                task = Task(block=entry.name, config={**entry.example, **taken}, settings=each)
                if task not in found:
                    found.append(task)
    return found


def perform(task: Task) -> Row | Failure:
    """The task's row; whatever the block raises becomes a `Failure`, and its memory is freed."""
    try:
        return _row(task)
    except Exception as error:
        reason = " ".join(line.strip() for line in str(error).strip().split("\n")[:2])
        text = f"{type(error).__name__}: {reason}".rstrip(": ")
    gc.collect()
    if task.settings.kind == "cuda":
        torch.cuda.empty_cache()
    return Failure(block=task.block, error=text, known=task.known())


def table(
    names: Iterable[str], settings: Settings | Iterable[Settings], c: int | None = None
) -> Iterator[Row | Failure]:
    """One row a block and settings at its example config, with the channels given here instead."""
    for task in tasks(names, settings, ({} if c is None else {"c": c},)):
        yield perform(task)


def measured(
    name: str, args: tuple[Any, ...], config: Mapping[str, Any], settings: Settings
) -> Row:
    """One block with a config, checked and measured; what `attnzoo.measure` returns."""
    entry = find(name)
    given = config if config or args else entry.example
    return _row(Task(block=name, config=entry.bind(*args, **given), settings=settings))


def _row(task: Task) -> Row:
    settings, entry = task.settings, find(task.block)
    config, extent = entry.bind(**task.config), settings.extent(entry)
    identity = Identity(block=task.block, **task.known())
    with _threads(settings.threads), cuda.ieee():
        block, inputs = _made(entry, config, extent, settings)
        bound = passes.bind(entry, block, inputs, settings)
        checked = correct.check(entry, config, bound, settings)
        costs = _costs(entry, config, extent, bound)
        times = timing.times(bound.passes, settings)
        batch = next(tensors(inputs)).shape[0]
        works = [
            roofline.Work(
                bytes=costs["bytes_forward"],
                macs=costs["macs_executed"] * batch,
                calls=roofline.calls(bound.passes.forward, settings),
                seconds=times.forward.median / 1e3,
            ),
            roofline.Work(
                bytes=costs["bytes_training"],
                macs=costs["macs_executed"] * batch * (1 + roofline.BACKWARD),
                calls=roofline.calls(bound.passes.training, settings),
                seconds=times.training.median / 1e3,
            ),
        ]
        roof = roofline.verdict(works, settings)
        with settings.precision():
            saved = count.saved_bytes(bound.run.train(), inputs)
        training = bound.passes.training.step
        peak = cuda.peak_bytes(training, settings.device) if settings.kind == "cuda" else None
    return Row(
        **vars(identity),
        **costs,
        latency_forward=times.forward,
        latency_train_forward=times.train_forward,
        latency_training=times.training,
        latency_forward_cold=times.forward_cold,
        latency_training_cold=times.training_cold,
        compile_seconds=bound.compile_seconds,
        pulse_ms=times.pulse_ms,
        memory_saved_bytes=saved,
        memory_peak_bytes=peak,
        roof_bandwidth=roof.bandwidth,
        roof_macs=roof.macs,
        roof_launch_us=roof.launch_us,
        roof_forward=roof.roofs[0],
        roof_training=roof.roofs[1],
        roof_forward_fraction=roof.fractions[0],
        roof_training_fraction=roof.fractions[1],
        checked_error=checked.error,
        checked_limit=checked.limit,
        sm_clock_mhz=times.sm_clock_mhz,
        throttle=times.throttle,
    )


def _made(
    entry: Entry, config: dict[str, Any], extent: Extent, settings: Settings
) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    at: dict[str, Any] = {"device": settings.device, "dtype": settings.stored}
    block = build(entry.name, **config, **at)
    stir(block)
    inputs = make_inputs(entry, config, extent, **at)
    if settings.channels_last:
        inputs = to_channels_last(entry, block, inputs)
    return block, leaves(inputs)


def _costs(
    entry: Entry, config: dict[str, Any], extent: Extent, bound: passes.Bound
) -> dict[str, Any]:
    """The row's counts, from a copy of the block that computes nothing."""
    ghost = build(entry.name, **config, device="meta")
    executed = count.macs(ghost, make_inputs(entry, config, extent, device="meta"))
    form = entry.closed_form(extent, **config)
    with bound.passes.forward.ready() as step:
        traffic = count.traffic(bound.block, bound.inputs, step())
    return {
        "params": sum(p.numel() for p in bound.block.parameters()),
        "macs": executed if form is None else form.macs,
        "macs_executed": executed,
        "elementwise": None,
        "bytes_forward": traffic.forward,
        "bytes_training": traffic.training,
    }


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON has it: lists for tuples."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(config)))
    return plain


@functools.cache
def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpus.read_text(), re.M) if cpus.exists() else []
    return str(names[0]) if names else platform.processor() or platform.machine()
