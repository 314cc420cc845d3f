"""Position attention in chunks of queries: the N x N matrix is recomputed instead of saved."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _torch
from ..ops.precision import upcast
from .custom_gradient import Pair

CHUNK_NUMEL = 2**19  # attention weights of one chunk, which fit into a processor's cache


def _query_chunks(q: Tensor) -> Iterator[slice]:
    b, _, n = q.shape
    step = max(64, CHUNK_NUMEL // max(1, b * n))
    for start in range(0, n, step):
        yield slice(start, start + step)


def _position_attention(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    rows, columns = upcast(q), upcast(k)
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    for chunk in _query_chunks(q):
        attention = torch.bmm(rows[:, :, chunk].mT, columns).softmax(-1).to(v.dtype)  # B n N
        y[:, :, chunk] = torch.bmm(v, attention.mT)
    return y.mul_(gamma), ()


def _position_attention_backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor, ...]:
    q, k, v, gamma = args
    rows, columns = upcast(q), upcast(k)
    dq, dk = torch.empty_like(rows), torch.zeros_like(columns)
    dv = torch.zeros_like(v, dtype=rows.dtype)
    for chunk in _query_chunks(q):
        attention = torch.bmm(rows[:, :, chunk].mT, columns).softmax(-1)  # B n N
        d_attention = torch.bmm(dy[:, :, chunk].mT, v).to(rows.dtype)
        d_energies = _torch.softmax_backward(d_attention, attention)
        dq[:, :, chunk] = torch.bmm(columns, d_energies.mT)
        dk.baddbmm_(rows[:, :, chunk], d_energies)
        dv += torch.bmm(dy[:, :, chunk], attention.to(v.dtype))
    d_gamma = (v * dv).sum().to(v.dtype).expand(1)
    return *(d.mul_(gamma).to(v.dtype) for d in (dq, dk, dv)), d_gamma  # scaled after summation


pair = Pair(_position_attention, _position_attention_backward, min_numel=2**12)
