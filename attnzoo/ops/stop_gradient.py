"""A tensor without its gradient, in recorded graphs too."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import _torch


def stop_gradient(x: Tensor) -> Tensor:
    """`x.detach()`, in a form that recorded graphs keep.

    `run_decompositions()` and `make_fx` write an alias in the place of detach(). There the numbers
    are the padding row of an embedding, which gets no gradient.
    """
    if not (_torch.is_exporting() or _torch.proxy_tracing()):
        return x.detach()
    row = torch.zeros(1, dtype=torch.long, device=x.device)
    return F.embedding(row, x.reshape(1, -1), padding_idx=0).reshape(x.shape)
