"""Series of different lengths in one batch, each as it is alone: its steps first, then padding."""

from typing import NamedTuple

import torch
from torch import Tensor


class Padding(NamedTuple):
    """Which steps of a batch count: `Padding.of(padded)`, True where a step is padding.

    `pack` brings the other steps to the front, where a layer that looks back, or that is told what
    is hidden, finds what each sample has alone; `unpack` puts results back where the steps were.
    """

    order: Tensor  # (N, T), the steps that count and then the others, each in their order
    hidden: Tensor  # (N, T), True behind the last packed step

    @classmethod
    def of(cls, padded: Tensor) -> "Padding":
        order = padded.to(torch.uint8).sort(stable=True, dim=1).indices
        return cls(order, padded.gather(1, order))

    def lengths(self) -> Tensor:
        """The number of steps of each sample, (N,)."""
        return (~self.hidden).sum(1)

    def pack(self, x: Tensor) -> Tensor:
        """(N, T, C) with zeros behind the steps that count."""
        return _picked(x, self.order).masked_fill(self.hidden[..., None], 0)

    def unpack(self, y: Tensor) -> Tensor:
        """(N, T, C) in the order before `pack`, with zeros in place of padding."""
        return _picked(y.masked_fill(self.hidden[..., None], 0), self.order.argsort(1))


def _picked(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
