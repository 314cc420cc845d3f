"""Rows of the benchmark made up in tests."""

from dataclasses import replace
from typing import Any

from attnzoo.bench.row import Latency, Row

MS = Latency(median=1.0, p20=0.95, p80=1.05, samples=100, pulse_us=500.0)


def row(block: str = "se", *, c: int = 64, **changed: Any) -> Row:
    """A measured row of a block with `c` channels, some fields changed."""
    return replace(
        Row(
            block=block,
            layout="image",
            config={"c": c, "reduction": 16},
            shape={"x": [2, c, 14, 14]},
            device="cpu",
            device_name="a processor",
            dtype="float32",
            autocast=False,
            channels_last=False,
            mode="eager",
            threads=2,
            torch="2.15.0",
            python="3.12.1",
            attnzoo="0.1.0",
            params=512,
            macs=512,
            macs_executed=512,
            elementwise=30_000,
            bytes_forward=200_000,
            bytes_training=400_000,
            latency_forward=MS,
            latency_train_forward=MS,
            latency_training=MS,
            latency_forward_cold=None,
            latency_training_cold=None,
            compile_seconds=None,
            memory_saved_bytes=1000,
            memory_peak_bytes=None,
            roof_bandwidth=1e10,
            roof_macs=1e11,
            roof_launch_us=2.0,
            roof_forward="launch",
            roof_training="bandwidth",
            roof_forward_fraction=None,
            roof_training_fraction=0.25,
            checked_error=1e-7,
            checked_limit=1e-3,
            sm_clock_mhz=None,
            throttle=None,
        ),
        **changed,
    )


def slower(latency: Latency, factor: float) -> Latency:
    """The same distribution, every sample longer by a factor."""
    m, p20, p80 = latency.median * factor, latency.p20 * factor, latency.p80 * factor
    return replace(latency, median=m, p20=p20, p80=p80)
