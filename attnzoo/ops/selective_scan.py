"""The selective scan: a linear recurrence whose decay and drive change from step to step.

    h_t = exp(dt_t A) * h_{t-1} + (dt_t u_t) B_t,    y_t = C_t h_t,    h_0 = 0

A is negative, dt not, so that every decay lies in [0, 1]. Both forms multiply decays and exponents
of sums of dt A only: nothing is divided and no exponent is positive, so nothing can overflow, and
what underflows is zero indeed.

The plain form cuts the steps into blocks: the steps of all blocks advance together, then the ends
of the blocks are a shorter sequence of the same kind. It has no loop over the length, so that one
exported graph serves every length. The hand-written pair goes step by step through chunks that
stay in the cache, keeps the state at the start of each chunk alone, and computes the others again
in the backward pass: it keeps steps / CHUNK states instead of several for every step.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._torch import is_exporting
from ..autograd import CustomGradient
from .precision import autocast_disabled

BLOCK = 8  # steps of a block of the plain form
LONGEST = 10**6  # steps that a graph for any length serves; more cost every exporter time
CHUNK = 32  # steps between the states that the hand-written pair keeps
SLAB = 2**15  # numbers in the states that a CPU advances together: a chunk stays in its cache


def selective_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The outputs y of the recurrence, for every step.

    Args:
        u: (N, T, E), the inputs.
        dt: (N, T, E), the step sizes, none negative.
        a: (E, S), the rates of decay, none positive; S is the size of the state of a channel.
        b: (N, T, S), how the input enters the state.
        c: (N, T, S), how the state is read.

    Returns:
        (N, T, E) in float32, in which half-precision arguments are computed too, or in float64.
    """
    kind = torch.float64 if u.dtype == torch.float64 else torch.float32
    with autocast_disabled(u):
        return _scan(*(t.to(kind) for t in (u, dt, a, b, c)))  # type: ignore[no-any-return]


def _plain(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
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
    """Blocks of so many steps: two at least and some to spare, as an exported graph insists."""
    return steps // BLOCK + 2


def _blocked(x: Tensor, late: int = 0) -> tuple[Tensor, ...]:
    """(N, T, ...) to a block's steps, each (N, K, ...); zeros stand before and after, `late` first.

    Indexed, here and in `_joined`: an exporter cannot prove what reshapes and slices ask for.
    """
    blocks = _blocks(x.shape[1])
    spare = blocks * BLOCK - x.shape[1] - late
    step, block = (torch.arange(n, device=x.device) for n in (BLOCK, blocks))
    padded = F.pad(x, (0, 0) * (x.ndim - 2) + (late, spare))
    return padded[:, step.unsqueeze(1) + BLOCK * block].unbind(1)


def _joined(blocked: Sequence[Tensor], steps: int) -> Tensor:
    """A block's steps, each (N, K, ...), to (N, T, ...)."""
    every = torch.arange(steps, device=blocked[0].device)
    return torch.stack(list(blocked), 2).flatten(1, 2).index_select(1, every)


def _states(
    sizes: Sequence[Tensor], drives: Sequence[Tensor], a: Tensor, levels: int
) -> list[Tensor]:
    """The states after a block's steps, each (N, K, S, E), of step sizes (N, K, E) and drives."""
    states = [drives[0]]
    for size, drive in zip(sizes[1:], drives[1:], strict=True):
        states.append((size.unsqueeze(2) * a).exp() * states[-1] + drive)
    if levels == 1:
        return states
    passed = torch.stack(list(sizes)).cumsum(0).unbind(0)
    ends = _states(_blocked(passed[-1], 1), _blocked(states[-1], 1), a, levels - 1)
    before = _joined(ends, drives[0].shape[1])  # N K S E, of the block before
    return [
        state + (size.unsqueeze(2) * a).exp() * before
        for size, state in zip(passed, states, strict=True)
    ]


def _forward(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    rates = a.t().contiguous()  # S E
    y = torch.empty_like(u)
    spans = _spans(u.shape[1])
    starts = u.new_zeros(len(spans), u.shape[0], *rates.shape)
    for slab, scratch in _slabs(u, rates, 2):
        state = starts[0, slab]
        for i, span in enumerate(spans):
            starts[i, slab].copy_(state)
            at = (slab, span)
            _, states = _advance(u[at], dt[at], rates, b[at], starts[i, slab], scratch)
            state = states[:, -1]
            y[at] = (c[at].unsqueeze(2) @ states).squeeze(2)
    return y, (starts,)


def _backward(
    needs: tuple[bool, ...], args: tuple[Tensor, ...], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    u, dt, a, b, c = args
    rates = a.t().contiguous()  # S E
    du, ddt, db, dc = (torch.empty_like(t) for t in (u, dt, b, c))
    da = torch.zeros_like(rates)
    spans = _spans(u.shape[1])
    for slab, scratch in _slabs(u, rates, 3):
        later = torch.zeros_like(saved[0][0, slab])  # what later chunks ask of the last state
        for i, span in reversed(list(enumerate(spans))):
            at, start = (slab, span), saved[0][i, slab]
            ut, dtt, bt, ct, dy = (t[at] for t in (u, dt, b, c, grad))
            decay, states = _advance(ut, dtt, rates, bt, start, scratch)
            g = torch.mul(dy.unsqueeze(2), ct.unsqueeze(3), out=scratch[2][:, : dy.shape[1]])
            later = _retreat(g, decay, later)  # g: N L S E, now the gradient of each state
            dc[at] = (states @ dy.unsqueeze(3)).squeeze(3)
            db[at] = (g @ (ut * dtt).unsqueeze(3)).squeeze(3)
            dx = (bt.unsqueeze(2) @ g).squeeze(2)  # N L E, the gradient of dt u
            decay.mul_(g)  # and with the state before, the gradient of dt a
            decay[:, 1:].mul_(states[:, :-1])
            decay[:, 0].mul_(start)
            da += torch.mul(decay, dtt.unsqueeze(2), out=g).sum((0, 1))
            torch.mul(dx, dtt, out=du[at])
            torch.addcmul(decay.mul_(rates).sum(2), dx, ut, out=ddt[at])
    return du, ddt, da.t(), db, dc


def _advance(
    u: Tensor, dt: Tensor, rates: Tensor, b: Tensor, state: Tensor, scratch: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Decays and states of one chunk, (N, L, S, E), written into the scratch tensors."""
    decay, states = (s[:, : u.shape[1]] for s in scratch[:2])
    torch.mul(dt.unsqueeze(2), rates, out=decay).exp_()
    torch.mul((dt * u).unsqueeze(2), b.unsqueeze(3), out=states)
    for now, kept in zip(states.unbind(1), decay.unbind(1), strict=True):
        state = now.addcmul_(kept, state)
    return decay, states


def _retreat(g: Tensor, decay: Tensor, later: Tensor) -> Tensor:
    """Adds to the gradient of each state what the later ones ask of it; returns the first's."""
    steps = list(zip(g.unbind(1), decay.unbind(1), strict=True))
    steps[-1][0].add_(later)
    for (now, _), (after, kept) in zip(steps[-2::-1], steps[:0:-1], strict=True):
        now.addcmul_(after, kept)
    return g[:, 0] * decay[:, 0]


def _spans(steps: int) -> list[slice]:
    return [slice(i, i + CHUNK) for i in range(0, steps, CHUNK)]


def _slabs(u: Tensor, rates: Tensor, count: int) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Samples to go through together, and scratch tensors for the states of a chunk of them.

    They are few on a CPU, so that a chunk stays in its cache, and all elsewhere.
    """
    every = u.shape[0]
    size = min(every, max(1, SLAB // rates.numel())) if u.device.type == "cpu" else every
    scratch = [u.new_empty(size, min(CHUNK, u.shape[1]), *rates.shape) for _ in range(count)]
    for i in range(0, every, max(1, size)):
        yield slice(i, i + size), tuple(s[: every - i] for s in scratch)


_scan = CustomGradient(_plain, _forward, _backward)
