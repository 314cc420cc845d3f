"""Splits a batch into chunks that stay in a processor's cache between passes over them."""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_NUMEL = 2**18  # 1 MB of float32


def chunks(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the first axis, each with a buffer of that chunk's shape to compute in.

    On a CPU a chunk has few samples and all chunks share one buffer, since allocating memory costs
    more there than the arithmetic; on an accelerator the whole batch is one chunk.
    """
    batch = x.shape[0]
    step = batch if x.device.type != "cpu" else max(1, CHUNK_NUMEL * batch // max(1, x.numel()))
    buffer = torch.empty_like(x[:step])
    for start in range(0, batch, max(1, step)):
        yield slice(start, start + step), buffer[: batch - start]
