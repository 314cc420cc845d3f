"""The harness behind `attnzoo bench`, `attnzoo compare` and `attnzoo.measure`; loads when it runs.

job (what is to be measured) -> run (built, checked, counted, timed) -> row -> store -> report/.
timing/ is the clock and the roofs; compare/ puts two checkouts, or two result files, side by side.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .row import Row
    from .settings import Settings


def measure(name: str, *args: Any, settings: "Settings | None" = None, **keywords: Any) -> "Row":
    """Check and measure one block: one row of the benchmark.

        attnzoo.measure("cbam", c=64, size=56, dtype="bfloat16")

    Args:
        name: a name of `attnzoo.names()`.
        *args: the channels `c`, by position.
        settings: of the harness, as a whole; needed only for an option that the block has too.
        **keywords: the block's own, and every other the harness's: device, dtype, autocast,
            channels_last, mode, threads, cold, batch, size, steps, min_time, as
            `attnzoo.bench.settings.Settings` explains them. With none of the block's, its example.

    Raises:
        ValueError, TypeError: as `build`, or a device, dtype or mode that does not exist here.
        WrongResultError: the block's numbers are wrong on this device, in this dtype and mode.
    """
    from ..registry import find
    from . import job, run
    from .settings import split

    entry = find(name)
    config, chosen = split(entry, keywords, settings)
    if config or args:
        return run.row(job.configured_job(name, args, config, chosen))
    return run.row(job.example_job(name, {}, chosen))
