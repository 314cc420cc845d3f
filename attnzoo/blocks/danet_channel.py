"""Channel attention of DANet: every channel gathers from the channels least like it.

Paper: Dual Attention Network for Scene Segmentation, Fu, Liu, Tian, Li, Bao, Fang, Lu, CVPR 2019,
    arXiv 1809.02983.
Code: junfu1115/DANet @b0a0fa0, `encoding/nn/da_att.py`, class `CAM_Module`.
Math: y = gamma * softmax(-X X^T) X + x, X = x as a (c, H W) matrix.
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the paper has softmax(X X^T); the code, which we follow, subtracts the energies from their
    row's maximum, which is the softmax of the opposite sign. Ours computes the energies of
    half-precision inputs in float32 (theirs overflow float16), and takes strided inputs.
Cost: parameters 1; MACs 2 c^2 H W.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..autograd import CustomGradient
from ..ops import memory_format
from ..ops.precision import autocast_dtype, upcast_dtype
from ..registry import Cost, InputSize, KnownVariant, register
from ..validation import check


def cost(at: InputSize, c: int) -> Cost:
    return Cost(params=1, macs=2 * c * c * at.height * at.width)


@register(
    "danet_channel",
    layout="image",
    family="channel",
    example={"c": 64},
    cost=cost,
    upstream={},  # the authors' name is ours
    known_variants=(
        KnownVariant(
            whose="changzy00's CAM",
            keys=("beta",),
            lacks=("weight", "bias", "gamma"),
            computes="takes the softmax of the energies themselves, not of their negatives",
        ),
    ),
)
class CAM(nn.Module):
    """Channel attention module on (B, C, H, W), with a residual gated by `gamma` (0 at first).

    Args:
        c: channels in and out; no parameter depends on it, inputs are held to it.
    """

    def __init__(self, c: int) -> None:
        super().__init__()
        check.positive(c=c)
        self.c = c
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.gamma)
        pixels = x.flatten(2)  # B C N
        if autocast_dtype(x) is None:
            y: Tensor = _attend(pixels, self.gamma)
        else:  # off: its dtype would round the energies, and float16 overflow
            with torch.autocast(x.device.type, enabled=False):
                y = _attend(pixels, self.gamma.to(x.dtype))
        return memory_format.match_memory_format(y.reshape(x.shape), x)

    def extra_repr(self) -> str:
        return f"c={self.c}"


def _attention(x: Tensor) -> Tensor:
    """softmax(-X X^T), in float32 at least."""
    rows = x.to(upcast_dtype(x.dtype))
    return (rows @ rows.mT).neg().softmax(-1)  # B C C


def _mixer(gamma: Tensor, attention: Tensor) -> Tensor:
    """gamma * A + 1: the residual is one more entry of the matrix, not another pass over x."""
    eye = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    return gamma * attention + eye


def _plain(x: Tensor, gamma: Tensor) -> Tensor:
    """gamma * softmax(-X X^T) X + X on (B, C, N)."""
    return _mixer(gamma, _attention(x)).to(x.dtype) @ x


def _forward(x: Tensor, gamma: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    attention = _attention(x)
    return _mixer(gamma, attention).to(x.dtype) @ x, (attention,)


def _backward(
    needs: tuple[bool, ...], args: tuple[Any, ...], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """X X^T is symmetric: both its gradients with respect to X are one matrix product."""
    (x, gamma), (attention,) = args, saved
    slope = (grad @ x.mT).to(attention.dtype)  # B C C
    pulled = attention * slope
    mean = pulled.sum(-1, keepdim=True)
    energy = gamma * (attention * mean - pulled)
    dx = _mixer(gamma, attention).to(x.dtype).mT @ grad
    dx.baddbmm_((energy + energy.mT).to(x.dtype), x)
    return dx, mean.sum().to(x.dtype).expand(1)


_attend = CustomGradient(_plain, _forward, _backward)
