"""Softmax attention with a learned bias on its scores."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import _torch


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, of (..., N, d), (..., M, d), (..., M, e), (..., N, M).

    Fused kernels have no derivatives under `torch.func` or in forward mode, and are not used there.
    """
    transformed = not torch.compiler.is_compiling() and (
        _torch.transforms_active() or _torch.forward_mode_active()
    )
    with sdpa_kernel(SDPBackend.MATH) if transformed else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
