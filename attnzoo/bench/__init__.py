"""The benchmark behind `attnzoo bench`, `attnzoo compare` and `attnzoo.measure`.

job (what to measure) -> run (build, check, count, time) -> row -> store -> report/.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .job import Settings
    from .row import Row


def measure(name: str, *args: Any, settings: "Settings | None" = None, **keywords: Any) -> "Row":
    """Check and measure one block: one row of the benchmark.

        attnzoo.measure("cbam", c=64, size=56, dtype="bfloat16")

    Args:
        name: a name of `attnzoo.names()`.
        *args: the channels `c`, by position.
        settings: needed only if the block has an argument of the same name as a setting.
        **keywords: arguments of the block, and fields of `attnzoo.bench.job.Settings`. Without
            arguments of the block, its registered example is measured.

    Raises:
        ValueError, TypeError: as `build`, or the device, dtype or mode is not available here.
        WrongResultError: the block's results are wrong on this device, in this dtype and mode.
    """
    from ..registry import find
    from . import job, run

    config, chosen = job.split(find(name), keywords, settings)
    if config or args:
        return run.row(job.configured_job(name, args, config, chosen))
    return run.row(job.example_job(name, {}, chosen))
