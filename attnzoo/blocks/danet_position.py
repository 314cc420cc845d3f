"""Position attention of DANet: every pixel attends to all pixels.

When: every pixel should see all others, on a small map: the cost is quadratic in the pixels.
Paper: Dual Attention Network for Scene Segmentation, Fu, Liu, Tian, Li, Bao, Fang, Lu, CVPR 2019,
    arXiv 1809.02983.
Code: junfu1115/DANet @b0a0fa0, `encoding/nn/da_att.py`, class `PAM_Module`.
Math: y = gamma * V softmax(Q^T K)^T + x over the N = H W pixels; Q, K, V = 1x1 convolutions of x
    (`query_conv`, `key_conv`: c // reduction channels; `value_conv`: c). The softmax runs over the
    keys; there is no 1 / sqrt(d).
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: paper and code agree. Ours never keeps the N x N attention for the backward pass, computes
    energies of half-precision inputs in float32 (theirs can overflow), and refuses c < reduction.
Cost: with r = c // reduction, parameters 2 r (c + 1) + c (c + 1) + 1;
    MACs N (2 c r + c^2) + N^2 (r + c).
"""

import torch
from torch import Tensor, nn

from ..autograd import custom_gradient, danet_position
from ..ops.memory_format import match_memory_format
from ..ops.precision import in_one_dtype, upcast
from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Count, Width


def position_attention(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """gamma * V softmax(Q^T K)^T; q and k are (B, R, N), v is (B, C, N)."""
    energies = torch.bmm(upcast(q).mT, upcast(k))  # B N N
    return gamma * torch.bmm(v, energies.softmax(-1).to(v.dtype).mT)


# Under autocast in the dtype of q, k and v, with energies in float32.
position_attention = in_one_dtype(custom_gradient(position_attention, danet_position.pair))


class PAM(nn.Module):
    """Position attention module on (B, C, H, W), with a residual gated by `gamma` (0 at first).

    Args:
        c: channels in and out.
        reduction: queries and keys have `c // reduction` channels.

    Raises:
        ValueError: `c < reduction`, which would leave queries of width zero.
    """

    def __init__(self, c: Width, *, reduction: Count = 8) -> None:
        super().__init__()
        width = check.reduced(c, reduction)
        self.c = c
        self.query_conv = nn.Conv2d(c, width, 1)
        self.key_conv = nn.Conv2d(c, width, 1)
        self.value_conv = nn.Conv2d(c, c, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.gamma)
        q, k = self.query_conv(x).flatten(2), self.key_conv(x).flatten(2)  # B R N
        v = self.value_conv(x).flatten(2)  # B C N
        y = position_attention(q, k, v, self.gamma).reshape(x.shape).to(x.dtype) + x
        return match_memory_format(y, x)

    def macs(self, size: InputSize) -> int:
        width, pixels = self.query_conv.out_channels, size.height * size.width
        return pixels * (2 * self.c * width + self.c**2) + pixels**2 * (width + self.c)

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "danet_position",
    PAM,
    layout="image",
    family="spatial",
    example={"c": 64},
    upstream={},  # the authors' names are the same
    known_variants=(
        KnownVariant(
            whose="changzy00's PAM",
            keys=("b.weight", "c.weight", "d.weight", "alpha"),
            computes="has queries and keys of all channels",
        ),
    ),
)
