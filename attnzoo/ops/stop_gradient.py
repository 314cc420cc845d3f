"""Stopping a gradient, also in recorded graphs, and whether there can be one."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _torch


def may_be_derived(x: Tensor) -> bool:
    """Whether a derivative through `x` can be asked for, in this call or of a recorded graph."""
    return (
        torch.compiler.is_compiling()
        or (torch.is_grad_enabled() and x.requires_grad)
        or _torch.transforms_active()
        or _torch.forward_mode_active()
        or _torch.proxy_tracing()
        or _torch.jit_tracing()
    )


def stop_gradient(x: Tensor) -> Tensor:
    """`x.detach()`, in a form that recorded graphs preserve.

    `run_decompositions()` and `make_fx` replace `detach()` by an alias, which has a gradient. There
    the values are looked up as the padding row of an embedding, which gets no gradient.
    """
    if not (_torch.is_exporting() or _torch.proxy_tracing()):
        return x.detach()
    row = torch.zeros(1, dtype=torch.long, device=x.device)
    return F.embedding(row, x.reshape(1, -1), padding_idx=0).reshape(x.shape)
