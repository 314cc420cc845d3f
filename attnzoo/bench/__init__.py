"""The harness behind `attnzoo bench` and `attnzoo.measure`; its parts load when they run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .run import Row


def measure(
    name: str,
    *args: Any,
    device: str = "cpu",
    dtype: str = "float32",
    batch: int | None = None,
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    min_time: float = 0.2,
    **config: Any,
) -> "Row":
    """Check and measure one block: one row of the benchmark.

    Args:
        name: a name of `attnzoo.names()`.
        *args: the channels `c`, by position.
        device: `"cpu"`, `"cuda"` or another torch device.
        dtype: `"float64"`, `"float32"`, `"bfloat16"` or `"float16"`, of parameters and inputs.
        batch, size, steps: batch size; image side or (height, width); number of time steps (for
            a sequence, `size` too). Default: the entry's example.
        min_time: seconds spent on each of the two timings.
        **config: the block's keywords; with none, the entry's example config.

    Raises:
        ValueError, TypeError: as `build`, or a device or dtype that does not exist here.
        WrongResultError: the block's numbers are wrong on this device and dtype.
    """
    from .run import Settings, measured

    settings = Settings(
        device=device, dtype=dtype, batch=batch, size=size, steps=steps, min_time=min_time
    )
    return measured(name, args, config, settings)
