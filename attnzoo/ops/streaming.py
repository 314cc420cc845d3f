"""The state that a stream of steps through `mamba` passes on from one step to the next."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..validation import check, messages


class MambaState(NamedTuple):
    """What one step of a stream leaves for the next."""

    inputs: Tensor  # (..., conv - 1, e), the latest inputs of the convolution
    hidden: Tensor  # (..., e, state), float32 for half-precision blocks


def check_sizes(batch: tuple[int, ...]) -> None:
    for i, size in enumerate(batch):
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"batch[{i}]={messages.shown(size)} must be an int of at least 0")


def check_state(x_t: Tensor, state: MambaState, initial: MambaState) -> None:
    """The state is one of a stream of steps like x_t."""
    if not isinstance(state, tuple) or len(state) != 2:
        raise TypeError(
            f"state must be what step returned or initial_state(), not a {type(state).__name__}"
        )
    for name, given, zero in zip(MambaState._fields, state, initial, strict=True):
        check.token(given, like=zero, name=f"state.{name}")
        ahead = tuple(given.shape[:-2])
        if given.shape[-2:] != zero.shape or ahead not in ((), tuple(x_t.shape[:-1])):
            raise ValueError(
                f"state.{name} has shape {tuple(given.shape)}; for x_t of shape "
                f"{tuple(x_t.shape)} it is {(*x_t.shape[:-1], *zero.shape)}: start from "
                "initial_state() and pass on what step returned"
            )


def latest(u: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """The last `count` steps of (N, T, E), zeros before the first; of `lengths` (N,) or all T."""
    steps = torch.arange(count, device=u.device)
    ends = torch.full_like(u[:, 0, 0], u.shape[1], dtype=torch.long) if lengths is None else lengths
    index = (ends[:, None] + steps)[..., None].expand(-1, -1, u.shape[2])
    return F.pad(u, (0, 0, count, 0)).gather(1, index)
