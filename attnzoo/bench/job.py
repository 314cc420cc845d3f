"""A row still to be measured: a block, its config, its size and the settings."""

import contextlib
import dataclasses
import functools
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..registry import Entry, InputSize, find
from ..testing.inputs import call, make_inputs
from ..validation.tensors import map_tensors
from .row import Failure
from .settings import CHANNELS, SIZES, Settings


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row to measure."""

    block: str
    config: Mapping[str, Any]
    at: InputSize
    settings: Settings

    def failed(self, error: str) -> Failure:
        """The job's failure, with as much of its identity as is known."""
        return Failure(block=self.block, error=error, known=self.known())

    def identity(self) -> dict[str, Any]:
        """What its row's or its failure's `identity()` will be."""
        return self.failed("").identity()

    def known(self) -> dict[str, Any]:
        """Its identity without block and schema, nor layout and shape if the config is refused."""
        settings, entry = self.settings, find(self.block)
        fields: dict[str, Any] = {"config": _plain(self.config)}
        with contextlib.suppress(Exception):  # raised again when the job is run
            bound = entry.bind(**self.config)
            inputs = make_inputs(entry, bound, self.at, device="meta")
            fields = {
                "shape": _plain(map_tensors(lambda tensor: list(tensor.shape), inputs)),
                "config": _plain(bound),
                "layout": bound.get("layout", entry.layouts[0]),
            }
        shared = ("dtype", "autocast", "channels_last", "mode", "threads")
        return {
            **fields,
            **{name: getattr(settings, name) for name in shared},
            "device": str(torch.device(settings.device)),
            "device_name": _device_name(settings.device),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "attnzoo": __version__,
        }

    def to_json(self) -> dict[str, Any]:
        """The job as plain JSON values, for another process."""
        found: dict[str, Any] = _plain(dataclasses.asdict(self) | {"at": self.at._asdict()})
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Job":
        """The job that `to_json` wrote."""
        made = {"at": InputSize(**data["at"]), "settings": Settings(**data["settings"])}
        return cls(**{**data, **made})


def example_job(name: str, over: Mapping[str, Any], settings: Settings) -> Job:
    """A block at its layout's common size, with keywords that replace those of its example.

    The first of these that the block accepts: the layout's channels and size, the example's
    channels at the layout's size, the example. Keywords that the block does not have are ignored.
    """
    entry = find(name)
    taken = {k: v for k, v in over.items() if k in entry.signature.parameters}
    own = {**entry.example, **taken}
    layout = own.get("layout", entry.layouts[0])
    standard = {"c": CHANNELS[layout]} if layout in SIZES and "c" in entry.example else {}
    configs = [{**entry.example, **standard, **taken}, own]
    if layout == "sequence" and "length" in entry.signature.parameters and "length" not in taken:
        steps = settings.applied_to(entry, SIZES[layout]).steps  # `length` must equal the steps
        configs = [*({**config, "length": steps} for config in configs), own]
    return _first_accepted(entry, configs, settings)


def configured_job(
    name: str, args: tuple[Any, ...], config: Mapping[str, Any], settings: Settings
) -> Job:
    """A block with a config, at its layout's common size or, if it refuses that, its example's."""
    bound = find(name).bind(*args, **config)
    return _first_accepted(find(name), [bound], settings)


def _first_accepted(entry: Entry, configs: list[dict[str, Any]], settings: Settings) -> Job:
    """The first config that runs at the layout's size, else the last at the example's size."""
    layout = configs[-1].get("layout", entry.layouts[0])
    at = SIZES.get(layout, entry.input_size)
    pairs = [*((config, at) for config in configs), (configs[-1], entry.input_size)]
    tried = [(config, settings.applied_to(entry, size)) for config, size in pairs]
    config, chosen = next((pair for pair in tried if _runs(entry, *pair)), tried[-1])
    return Job(block=entry.name, config=config, at=chosen, settings=settings)


def _runs(entry: Entry, config: Mapping[str, Any], at: InputSize) -> bool:
    """Whether the block accepts a config and a size; computes nothing."""
    try:
        bound = entry.bind(**config)
        with torch.device("meta"), torch.no_grad():
            call(entry.cls(**bound), make_inputs(entry, bound, at, device="meta"))
    except Exception:  # refused, for a reason that the job will give
        return False
    return True


def _plain(value: Any) -> Any:
    """The value as JSON has it, with lists for tuples."""
    return json.loads(json.dumps(value))


@functools.cache
def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpus.read_text(), re.M) if cpus.exists() else []
    return str(names[0]) if names else platform.processor() or platform.machine()
