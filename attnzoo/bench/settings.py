"""The settings of a measurement: the options of `measure` and of `attnzoo bench`."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import torch

from ..registry import Entry, InputSize
from ..validation import check
from ..validation.types import AtLeast, AtMost, Count, Positive
from .row import Checked, Mode

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
            raise ValueError(
                f"autocast=True needs dtype='bfloat16' or 'float16', not {self.dtype!r}"
            )
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

    def precision(self) -> AbstractContextManager[object]:
        """The context of a forward pass: autocast, if set."""
        return torch.autocast(self.kind, self.computed) if self.autocast else nullcontext()

    def applied_to(self, entry: Entry, at: InputSize) -> InputSize:
        """A size with the batch, sides and steps that are set."""
        asked: dict[str, Any] = {"batch": self.batch, "steps": self.steps}
        if self.size is not None:
            sides = (self.size, self.size) if isinstance(self.size, int) else self.size
            asked |= {"height": sides[0], "width": sides[1]}
            if entry.layouts[0] == "sequence" and self.steps is None:
                asked["steps"] = sides[0] if isinstance(self.size, int) else None
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
