"""The selective scan: a linear recurrence whose coefficients change from step to step.

    h_t = exp(dt_t A) * h_{t-1} + (dt_t u_t) B_t,    y_t = C_t h_t,    h_0 = 0

A is negative and dt is not, so that every decay lies in [0, 1]. The computation multiplies decays
and exponentials of sums of dt A: it divides by nothing and no exponent is positive, so that nothing
overflows, and what underflows is zero to working precision.

The steps are split into blocks, whose steps advance together; the last states of the blocks form a
shorter recurrence of the same kind, solved the same way. There is no loop over the length, so that
one exported graph serves every length.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch import is_exporting

BLOCK = 8  # steps in a block
LONGEST = 10**6  # steps that a graph of dynamic length supports; more would slow down every export


def selective_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The outputs y of the recurrence for every step, (N, T, E).

    Args:
        u: (N, T, E), the inputs.
        dt: (N, T, E), the step sizes, none negative.
        a: (E, S), the rates of decay, none positive; S is the size of the state of a channel.
        b: (N, T, S), the weights with which the input enters the state.
        c: (N, T, S), the weights with which the output reads the state.
    """
    sizes, inputs, entries = _blocked(dt), _blocked(u), _blocked(b)
    drives = [
        (size * x).unsqueeze(2) * entry.unsqueeze(3)  # N K S E
        for size, x, entry in zip(sizes, inputs, entries, strict=True)
    ]
    states = _joined(_states(sizes, drives, a.t(), _levels(u.shape[1])), u.shape[1])
    return (c.unsqueeze(2) @ states).squeeze(2)  # N T E


def _levels(steps: int) -> int:
    if isinstance(steps, torch.SymInt) or is_exporting():
        steps = LONGEST
    levels = 1
    while steps >= BLOCK:
        steps = _blocks(steps)
        levels += 1
    return levels


def _blocks(steps: int) -> int:
    """The number of blocks: at least two, and more than needed, as `torch.export` requires."""
    return steps // BLOCK + 2


def _blocked(x: Tensor, lead: int = 0) -> tuple[Tensor, ...]:
    """(N, T, ...) to the steps of K blocks, each (N, K, ...), padded with zeros.

    `lead` steps of padding come first, the rest last. Both this and `_joined` use indices, since
    reshapes and slices would add shape constraints that `torch.export` cannot prove.
    """
    blocks = _blocks(x.shape[1])
    spare = blocks * BLOCK - x.shape[1] - lead
    step, block = (torch.arange(n, device=x.device) for n in (BLOCK, blocks))
    padded = F.pad(x, (0, 0) * (x.ndim - 2) + (lead, spare))
    return padded[:, step.unsqueeze(1) + BLOCK * block].unbind(1)


def _joined(blocked: Sequence[Tensor], steps: int) -> Tensor:
    """The steps of K blocks, each (N, K, ...), to (N, T, ...): the inverse of `_blocked`."""
    every = torch.arange(steps, device=blocked[0].device)
    return torch.stack(list(blocked), 2).flatten(1, 2).index_select(1, every)


def _states(
    sizes: Sequence[Tensor], drives: Sequence[Tensor], a: Tensor, levels: int
) -> list[Tensor]:
    """The states after each step of K blocks, each (N, K, S, E).

    `sizes` are the step sizes dt, each (N, K, E), and `drives` the terms (dt u) B.
    """
    states = [drives[0]]
    for size, drive in zip(sizes[1:], drives[1:], strict=True):
        states.append((size.unsqueeze(2) * a).exp() * states[-1] + drive)
    if levels == 1:
        return states
    passed = torch.stack(list(sizes)).cumsum(0).unbind(0)
    ends = _states(_blocked(passed[-1], 1), _blocked(states[-1], 1), a, levels - 1)
    before = _joined(ends, drives[0].shape[1])  # N K S E, the last state of the block before
    return [
        state + (size.unsqueeze(2) * a).exp() * before
        for size, state in zip(passed, states, strict=True)
    ]
