"""Rows of the benchmark made up in tests."""

from dataclasses import replace
from typing import Any

from attnzoo.bench.row import Latency, Row

MS = Latency(best=1.0, p20=1.05, median=1.1, p80=1.3, samples=100, disturbed=3, settled=True)


def row(block: str = "se", at: float = 1.0, *, c: int = 64, **changed: Any) -> Row:
    """A measured row of a block with `c` channels, `at` times as slow, some fields changed."""
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
            macs=1_234_567,
            macs_executed=1_234_567,
            macs_executed_training=3 * 1_234_567,
            elementwise=30_000,
            elementwise_training=80_000,
            fvcore_macs=1_200_000,
            fvcore_misses={"scaled_dot_product_attention": 34_567},
            bytes_forward=200_000,
            bytes_training=400_000,
            latency_forward=slower(MS, at),
            latency_training=slower(MS, 3 * at),
            latency_forward_device=None,
            latency_training_device=None,
            latency_forward_cold=None,
            latency_training_cold=None,
            compile_seconds=None,
            memory_saved_bytes=1000,
            memory_peak_bytes=None,
            roof_bandwidth=1e10,
            roof_macs=1e11,
            roof_launch_us=2.0,
            roof_forward="launch",
            roof_forward_fraction=0.12,
            roof_training="bandwidth",
            roof_training_fraction=0.35,
            checked_error=1e-7,
            checked_limit=1e-3,
            load=0.5,
            throttle=None,
        ),
        **changed,
    )


def slower(latency: Latency, factor: float) -> Latency:
    """The same distribution, every sample longer by a factor."""
    times = {name: factor * getattr(latency, name) for name in ("best", "p20", "median", "p80")}
    return replace(latency, **times)
