"""Finds calls that keep memory."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

CALLS = 4  # that must each keep more before it counts


def kept_bytes(call: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes of tensors that every call keeps beyond those before it; 0 if one call keeps none."""
    gc.freeze()  # so that only objects made from now on are collected and listed
    try:
        before, grown = _live_bytes(device), 0
        for _ in range(CALLS):
            call()
            grown = _live_bytes(device) - before
            before += grown
            if grown <= 0:
                return 0
        return grown
    finally:
        gc.unfreeze()


def _live_bytes(device: str) -> int:
    """Bytes of the tensors that are alive; on the CPU, of those that the collector lists."""
    gc.collect()
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    # By `type`: `isinstance` can be overridden by the objects of other libraries.
    found = (t for t in gc.get_objects() if issubclass(type(t), Tensor))
    return sum(t.numel() * t.element_size() for t in found if t.layout == torch.strided)
