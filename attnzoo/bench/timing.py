"""How long: median and spread of a block's forward pass and of its training step."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..registry import Inputs
from .workload import call, tensors


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call on the whole batch."""

    median: float
    p20: float
    p80: float
    samples: int


def forward(block: nn.Module, inputs: Inputs, device: str, min_time: float) -> Latency:
    """The forward pass in eval mode under `torch.inference_mode`."""
    block.eval()

    def step() -> None:
        with torch.inference_mode():
            call(block, inputs)

    return _time(step, device, min_time)


def training(block: nn.Module, inputs: Inputs, device: str, min_time: float) -> Latency:
    """Forward and backward in train mode, gradients of inputs and parameters included."""
    block.train()
    outputs = [t for t in tensors(call(block, inputs)) if t.requires_grad]
    grads = [torch.randn_like(t) for t in outputs]
    leaves = [t for t in (*tensors(inputs), *block.parameters()) if t.requires_grad]
    del outputs

    def step() -> None:
        results = [t for t in tensors(call(block, inputs)) if t.requires_grad]
        torch.autograd.grad(results, leaves, grads, allow_unused=True)

    return _time(step, device, min_time)


def _time(step: Callable[[], None], device: str, min_time: float) -> Latency:
    """Repeat `step` for `min_time` seconds and at least five times, after as long a warm-up."""
    once = _cuda_once if torch.device(device).type == "cuda" else _cpu_once
    _repeat(lambda: once(step), min_time / 4, 2)
    samples = _repeat(lambda: once(step), min_time, 5)
    p20, p80 = statistics.quantiles(samples, n=5)[0], statistics.quantiles(samples, n=5)[3]
    return Latency(statistics.median(samples), p20, p80, len(samples))


def _repeat(sample: Callable[[], float], seconds: float, least: int) -> list[float]:
    end = time.perf_counter() + seconds
    samples: list[float] = []
    while len(samples) < least or time.perf_counter() < end:
        samples.append(sample())
    return samples


def _cpu_once(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def _cuda_once(step: Callable[[], None]) -> float:
    start: torch.Event = torch.Event("cuda", enable_timing=True)
    end: torch.Event = torch.Event("cuda", enable_timing=True)
    start.record()
    step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))
