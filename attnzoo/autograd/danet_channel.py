"""Channel attention that saves its C x C matrix; as X X^T is symmetric, one product less is run."""

from typing import Any

import torch
from torch import Tensor

from ..ops.precision import upcast
from .custom_gradient import Pair


def _with_residual(gamma: Tensor, attention: Tensor) -> Tensor:
    """gamma * A + identity, whose product with x includes the residual."""
    eye = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    return gamma * attention + eye


def _channel_attention(x: Tensor, gamma: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    rows = upcast(x)
    attention = (rows @ rows.mT).neg_().softmax(-1)  # B C C
    return _with_residual(gamma, attention).to(x.dtype) @ x, (attention,)


def _channel_attention_backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], dy: Tensor
) -> tuple[Tensor, Tensor]:
    (x, gamma), (attention,) = args, saved
    product = attention * (dy @ x.mT).to(attention.dtype)  # B C C
    mean = product.sum(-1, keepdim=True)
    d_energies = gamma * (attention * mean - product)
    dx = _with_residual(gamma, attention).to(x.dtype).mT @ dy
    dx.baddbmm_((d_energies + d_energies.mT).to(x.dtype), x)
    return dx, mean.sum().to(x.dtype).expand(1)


pair = Pair(_channel_attention, _channel_attention_backward, min_numel=2**16)
