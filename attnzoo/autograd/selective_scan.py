"""The selective scan step by step, in chunks that stay in the cache.

The forward pass saves only the state at the start of each chunk, and the backward pass recomputes
the others: steps / CHUNK states are saved, instead of several for every step.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import selective_scan as reference
from ..ops.precision import in_one_dtype, upcast_dtype
from .custom_gradient import Pair, custom_gradient

CHUNK = 32  # steps between the states that are saved
SLAB = 2**15  # elements of the states that a CPU advances together, so that a chunk stays in cache


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
        later = torch.zeros_like(saved[0][0, slab])  # gradient of the last state from later chunks
        for i, span in reversed(list(enumerate(spans))):
            at, start = (slab, span), saved[0][i, slab]
            ut, dtt, bt, ct, dy = (t[at] for t in (u, dt, b, c, grad))
            decay, states = _advance(ut, dtt, rates, bt, start, scratch)
            g = torch.mul(dy.unsqueeze(2), ct.unsqueeze(3), out=scratch[2][:, : dy.shape[1]])
            later = _retreat(g, decay, later)  # g: N L S E, now the gradient of each state
            dc[at] = (states @ dy.unsqueeze(3)).squeeze(3)
            db[at] = (g @ (ut * dtt).unsqueeze(3)).squeeze(3)
            dx = (bt.unsqueeze(2) @ g).squeeze(2)  # N L E, the gradient of dt u
            decay.mul_(g)  # times the previous state: the gradient of dt a
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
    for now, factor in zip(states.unbind(1), decay.unbind(1), strict=True):
        state = now.addcmul_(factor, state)
    return decay, states


def _retreat(g: Tensor, decay: Tensor, later: Tensor) -> Tensor:
    """Backpropagates through a chunk's states, in place; returns the gradient before the first."""
    steps = list(zip(g.unbind(1), decay.unbind(1), strict=True))
    steps[-1][0].add_(later)
    for (now, _), (after, factor) in zip(steps[-2::-1], steps[:0:-1], strict=True):
        now.addcmul_(after, factor)
    return g[:, 0] * decay[:, 0]


def _spans(steps: int) -> list[slice]:
    return [slice(i, i + CHUNK) for i in range(0, steps, CHUNK)]


def _slabs(u: Tensor, rates: Tensor, count: int) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Slices of samples to process together, each with scratch tensors for the states of one chunk.

    On a CPU a slice has few samples, so that a chunk stays in the cache; elsewhere it has all.
    """
    every = u.shape[0]
    size = min(every, max(1, SLAB // rates.numel())) if u.device.type == "cpu" else every
    scratch = [u.new_empty(size, min(CHUNK, u.shape[1]), *rates.shape) for _ in range(count)]
    for i in range(0, every, max(1, size)):
        yield slice(i, i + size), tuple(s[: every - i] for s in scratch)


# In float32 for half precision, whose range the states exceed.
selective_scan = in_one_dtype(
    custom_gradient(reference.selective_scan, Pair(_forward, _backward)), upcast_dtype
)


def scan_with_state(
    u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """`selective_scan`, and the state after the last step, (N, E, S).

    S more steps of size 0 leave the state as it is and read one number of it each.
    """
    steps, size = u.shape[1], a.shape[1]
    u, dt, b = (F.pad(t, (0, 0, 0, size)) for t in (u, dt, b))
    each = torch.eye(size, dtype=c.dtype, device=c.device).expand(c.shape[0], -1, -1)
    y = selective_scan(u, dt, a, b, torch.cat((c, each), 1))
    return y[:, :steps], y[:, steps:].mT
