"""The harness behind `attnzoo bench` and `attnzoo.measure`; its parts load when they run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .row import Mode, Row


def measure(
    name: str,
    *args: Any,
    device: str = "cpu",
    dtype: str = "float32",
    autocast: bool = False,
    channels_last: bool = False,
    mode: "Mode" = "eager",
    threads: int | None = None,
    cold: bool = False,
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
        autocast: keep parameters and inputs in float32 and run under `torch.autocast` to `dtype`,
            bfloat16 or float16.
        channels_last: weights and images in that memory format; image blocks alone.
        mode: `"eager"`, `"compiled"` (torch.compile for this very size; its time stands apart in
            `compile_seconds`) or, on CUDA, `"cudagraph"` (replay of a captured graph).
        threads: of the CPU's operators; default: torch's.
        cold: on CUDA, latencies with the L2 cache flushed too.
        batch, size, steps: batch size; image side or (height, width); number of time steps (for
            a sequence, `size` too). Default: the entry's example.
        min_time: seconds spent on each timing.
        **config: the block's keywords; with none, the entry's example config.

    Raises:
        ValueError, TypeError: as `build`, or a device, dtype or mode that does not exist here.
        WrongResultError: the block's numbers are wrong on this device, in this dtype and mode.
    """
    from .run import Settings, measured

    settings = Settings(
        device=device,
        dtype=dtype,
        autocast=autocast,
        channels_last=channels_last,
        mode=mode,
        threads=threads,
        cold=cold,
        batch=batch,
        size=size,
        steps=steps,
        min_time=min_time,
    )
    return measured(name, args, config, settings)
