"""A row to be: block, config and settings, and the identity that its row or failure will have."""

import contextlib
import functools
import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..registry import Entry, find
from ..testing.inputs import make_inputs
from .row import Failure
from .settings import Settings


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row to be: a block, its config as asked for, and the settings."""

    block: str
    config: Mapping[str, Any]
    settings: Settings

    def identity(self) -> str:
        """What its row's or its failure's `identity()` will be; for `--resume`."""
        return self.failed("").identity()

    def failed(self, error: str) -> Failure:
        """The task's failure, with all of its identity that can be told."""
        return Failure(block=self.block, error=error, known=self.known())

    def known(self) -> dict[str, Any]:
        """Its identity's fields, but block and schema; no layout and shape if the config is bad."""
        settings, entry = self.settings, find(self.block)
        return {
            **_workload(entry, self.config, settings),
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
    several = (settings,) if isinstance(settings, Settings) else tuple(settings)
    over = list(configs)
    found: list[Task] = []
    for entry in [find(name) for name in names]:
        for config in over:
            taken = {k: v for k, v in config.items() if k in entry.signature.parameters}
            for each in several:
                task = Task(block=entry.name, config={**entry.example, **taken}, settings=each)
                if task not in found:
                    found.append(task)
    return found


def _workload(entry: Entry, config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    fields: dict[str, Any] = {"config": _plain(config)}
    with contextlib.suppress(Exception):  # to be raised again where it is performed
        bound = entry.bind(**config)
        inputs = make_inputs(entry, bound, settings.input_size(entry), device="meta")
        fields["shape"] = {
            key: [list(t.shape) for t in value] if isinstance(value, list) else list(value.shape)
            for key, value in inputs.items()
        }
        fields["config"] = _plain(bound)
        fields["layout"] = bound.get("layout", entry.layouts[0])
    return fields


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
