"""A batch in chunks that stay in a processor's cache between the passes over them."""

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_NUMEL = 2**18  # 1 MB of float32


def chunks(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the first axis, each with a buffer of that chunk's shape to compute in.

    Few samples at a time on a CPU, where fresh memory is dearer than the arithmetic and all
    chunks share one buffer; the whole batch at once on an accelerator.
    """
    batch = x.shape[0]
    step = batch if x.device.type != "cpu" else max(1, CHUNK_NUMEL * batch // max(1, x.numel()))
    buffer = torch.empty_like(x[:step])
    for start in range(0, batch, max(1, step)):
        yield slice(start, start + step), buffer[: batch - start]
