"""A row still to be measured: a block, its config, its size and the settings."""

import contextlib
import functools
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from .. import __version__
from ..registry import Entry, InputSize, find
from ..testing.inputs import call, make_inputs
from ..validation import check
from ..validation.tensors import map_tensors
from ..validation.types import AtLeast, AtMost, Count, Positive
from .row import Checked, Failure, Mode

# Common to a layout, so that ranks compare, and large enough that bandwidth or arithmetic takes the
# time rather than the launch of operators.
SIZES = {
    "image": InputSize(batch=8, height=28, width=28),
    "sequence": InputSize(batch=16, steps=96),
    "image_series": InputSize(batch=2, steps=24, height=16, width=16),
}
CHANNELS = {"image": 256, "sequence": 64, "image_series": 32}
Threads = Annotated[int, AtLeast(1), AtMost(1024)]  # OpenMP ends the process past a system's limit


@dataclass(frozen=True, kw_only=True)
class Settings(Checked):
    """The conditions under which a row is measured.

    Args:
        device: `"cpu"`, `"cuda"` or another torch device.
        dtype: of parameters and inputs.
        autocast: keep parameters and inputs in float32 and run under `torch.autocast` to `dtype`,
            bfloat16 or float16.
        channels_last: weights and images in that memory format; image blocks alone.
        mode: `"eager"`, `"compiled"` (torch.compile for this size; the time it takes is
            `compile_seconds`) or, on CUDA, `"cudagraph"` (replay of a captured graph).
        threads: of the CPU's operators.
        cold: on CUDA, also measure latencies with a flushed L2 cache.
        batch, size, steps: batch size; image side or (height, width); number of time steps (for
            a sequence, `size` too). Default: those of the layout, or of the block's example if it
            does not accept those.
        min_time: seconds of samples for each pass.
    """

    device: str = "cpu"
    dtype: Literal["float64", "float32", "bfloat16", "float16"] = "float32"
    autocast: bool = False
    channels_last: bool = False
    mode: Mode = "eager"
    threads: Threads = 1
    cold: bool = False
    batch: Count | None = None
    size: Count | tuple[Count, Count] | None = None
    steps: Count | None = None
    min_time: Positive = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check.device("device", self.device)
        if self.kind == "meta":
            raise ValueError("device='meta' computes nothing; use one that does, such as 'cpu'")
        if self.autocast and self.dtype not in ("bfloat16", "float16"):
            raise ValueError(f"autocast=True needs 'bfloat16' or 'float16', not {self.dtype!r}")
        if self.kind != "cuda" and (self.cold or self.mode == "cudagraph"):
            asked = "cold=True" if self.cold else "mode='cudagraph'"
            raise ValueError(f"{asked} needs a CUDA device, such as 'cuda', not {self.device!r}")

    @property
    def kind(self) -> str:
        """The kind of device: `cpu`, `cuda`, ..."""
        return torch.device(self.device).type

    @property
    def stored(self) -> torch.dtype:
        """The dtype of parameters and inputs: float32 under autocast."""
        return torch.float32 if self.autocast else self.computed

    @property
    def computed(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass: autocast, if set."""
        if not self.autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, self.computed)

    def applied_to(self, entry: Entry, at: InputSize) -> InputSize:
        """A size with the batch, sides and steps that are set."""
        asked: dict[str, Any] = {"batch": self.batch, "steps": self.steps}
        if isinstance(self.size, int):
            asked |= {"height": self.size, "width": self.size}
            if entry.layouts[0] == "sequence":
                asked["steps"] = self.steps or self.size
        elif self.size is not None:
            asked |= {"height": self.size[0], "width": self.size[1]}
        return at._replace(**{axis: n for axis, n in asked.items() if n is not None})


def split(
    entry: Entry, keywords: Mapping[str, Any], settings: Settings | None
) -> tuple[dict[str, Any], Settings]:
    """Split keywords into the block's arguments and settings; a block's argument comes first."""
    own = set(entry.signature.parameters)
    names = {item.name for item in fields(Settings)} - own
    chosen = {key: value for key, value in keywords.items() if key in names}
    config = {key: value for key, value in keywords.items() if key not in names}
    return config, replace(settings or Settings(), **chosen)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row to measure."""

    block: str
    config: Mapping[str, Any]
    at: InputSize
    settings: Settings

    def failed(self, error: str = "") -> Failure:
        """The job's failure, with as much of its identity as is known."""
        return Failure(block=self.block, error=error, known=self.known())

    def identity(self) -> dict[str, Any]:
        """What its row's or its failure's `identity()` will be."""
        return self.failed().identity()

    def known(self) -> dict[str, Any]:
        """Its identity without block and schema, nor layout and shape if the config is refused."""
        entry, settings = find(self.block), asdict(self.settings)
        known: dict[str, Any] = {"config": _plain(self.config)}
        with contextlib.suppress(Exception):  # raised again when the job is run
            bound = entry.bind(**self.config)
            inputs = make_inputs(entry, bound, self.at, device="meta")
            known["shape"] = _plain(map_tensors(lambda tensor: list(tensor.shape), inputs))
            known |= {"config": _plain(bound), "layout": bound.get("layout", entry.layouts[0])}
        return {
            **known,
            **{k: settings[k] for k in ("dtype", "autocast", "channels_last", "mode", "threads")},
            "device": str(torch.device(self.settings.device)),
            "device_name": device_name(self.settings.device),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
            "attnzoo": __version__,
        }

    def to_json(self) -> dict[str, Any]:
        """The job as plain JSON values, for another process."""
        return {**asdict(self), "at": self.at._asdict()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Job":
        """The job that `to_json` wrote."""
        made = {"at": InputSize(**data["at"]), "settings": Settings(**data["settings"])}
        return cls(**{**data, **made})


def example_job(name: str, over: Mapping[str, Any], settings: Settings) -> Job:
    """A block at the channels and the size of its layout, or its example's if it refuses those.

    `over` replaces keywords of the example; those that the block does not have are ignored.
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
    """A block with a config, at the size of its layout or, if it refuses that, its example's."""
    return _first_accepted(find(name), [find(name).bind(*args, **config)], settings)


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
def device_name(device: str) -> str:
    """The name of the GPU, or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpus.read_text(), re.M) if cpus.exists() else []
    return str(names[0]) if names else platform.processor() or platform.machine()
