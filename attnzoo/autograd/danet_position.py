"""Position attention by runs of queries: the N x N attention is never kept, but computed again."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..ops.precision import upcast
from .custom_gradient import Pair

RUN_NUMEL = 2**19  # numbers of the attention in one run, which stay in a cache


def _runs(q: Tensor) -> Iterator[slice]:
    b, _, n = q.shape
    step = max(64, RUN_NUMEL // max(1, b * n))
    for start in range(0, n, step):
        yield slice(start, start + step)


def _position_attention(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    rows, columns = upcast(q), upcast(k)
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    for run in _runs(q):
        attention = torch.bmm(rows[:, :, run].mT, columns).softmax(-1).to(v.dtype)  # B n N
        y[:, :, run] = torch.bmm(v, attention.mT)
    return y.mul_(gamma), ()


def _position_attention_backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor, ...]:
    q, k, v, gamma = args
    rows, columns = upcast(q), upcast(k)
    dq, dk = torch.empty_like(rows), torch.zeros_like(columns)
    dv = torch.zeros_like(v, dtype=rows.dtype)
    for run in _runs(q):
        attention = torch.bmm(rows[:, :, run].mT, columns).softmax(-1)  # B n N
        d_attention = torch.bmm(dy[:, :, run].mT, v).to(rows.dtype)
        d_energies = _torch.softmax_backward(d_attention, attention)
        dq[:, :, run] = torch.bmm(columns, d_energies.mT)
        dk.baddbmm_(rows[:, :, run], d_energies)
        dv += torch.bmm(dy[:, :, run], attention.to(v.dtype))
    d_gamma = (v * dv).sum().to(v.dtype).expand(1)
    return *(d.mul_(gamma).to(v.dtype) for d in (dq, dk, dv)), d_gamma  # gamma times whole sums


pair = Pair(_position_attention, _position_attention_backward, min_numel=2**12)
