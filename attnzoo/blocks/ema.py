"""Efficient multi-scale attention: two branches per channel group weight each other's maps.

When: channels should be gated in groups without reducing their number, at the price of 3x3
    convolutions.
Paper: Efficient Multi-Scale Attention Module with Cross-Spatial Learning, Ouyang, He, Zhang, Luo,
    Guo, Zhan, Huang, ICASSP 2023, arXiv 2305.13563.
Code: YOLOonMe/EMA-attention-module @afc37ec, file `EMA_attention_module`, class `EMA`.
Math: with u one group of d = c / groups channels, and the same weights for every group,
    [r, s] = W1 [mean_W(u), mean_H(u)] + b1, u1 = norm(u * sigmoid(r) * sigmoid(s)) over each plane,
    u2 = conv3x3(u), p_i = softmax_d(mean_HW(u_i)),
    y = u * sigmoid(sum_d p_1 u_2 + sum_d p_2 u_1).
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: paper, code and this block agree; the authors' `factor` is `groups`, 32 by default there.
    The mean of u1 is the norm's bias, so that p_1 does not depend on x. A plane of one value, which
    torch's GroupNorm rejects for a single group, becomes the norm's bias here. A c that the groups
    do not divide fails in the authors' forward, and here in the constructor.
Cost: parameters 10 d^2 + 4 d; MACs groups ((H + W) d^2 + 9 d^2 H W + 2 d H W).
"""

import torch
from torch import Tensor, nn

from ..ops.memory_format import match_memory_format
from ..ops.precision import downcast
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Width


class EMA(nn.Module):
    """Efficient multi-scale attention on (B, C, H, W).

    Args:
        c: channels in and out.
        groups: parts that the channels are split into; all share the weights.

    Raises:
        ValueError: `groups` does not divide `c`.
    """

    def __init__(self, c: Width, *, groups: Count = 8) -> None:
        super().__init__()
        d = check.divides(of="c", by="groups", c=c, groups=groups)
        self.c, self.groups = c, groups
        self.gn = PlaneNorm(d, d)
        self.conv1x1 = nn.Conv2d(d, d, 1)
        self.conv3x3 = nn.Conv2d(d, d, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.conv1x1)
        b, c, h, w = x.shape
        u = x.reshape(b * self.groups, c // self.groups, h, w)  # N d H W
        strips = torch.cat((u.mean(3, keepdim=True), u.mean(2, keepdim=True).mT), 2)
        r, s = self.conv1x1(strips).sigmoid().to(x.dtype).split((h, w), 2)  # N d H 1, N d W 1
        u1, u2 = self.gn(u * r * s.mT), self.conv3x3(u)
        m = _mix(u1, u2) + _mix(u2, u1)  # N 1 H W
        y = u * m.sigmoid().to(x.dtype)
        return match_memory_format(y.reshape(x.shape), x)

    def macs(self, size: InputSize) -> int:
        d, (h, w) = self.c // self.groups, size[-2:]
        return self.groups * ((h + w) * d * d + 9 * d * d * h * w + 2 * d * h * w)

    def extra_repr(self) -> str:
        return f"c={self.c}, groups={self.groups}"


class PlaneNorm(nn.GroupNorm):
    """GroupNorm that also accepts groups of a single value, which it replaces by the bias."""

    def forward(self, input: Tensor) -> Tensor:
        input = downcast(input, self.weight)
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _mix(u: Tensor, v: Tensor) -> Tensor:
    """The maps of v, (N, d, H, W), weighted by the softmax of the means of u: (N, 1, H, W)."""
    p = u.mean((2, 3)).softmax(1)[:, None]  # N 1 d
    mixed = p.to(v.dtype) @ v.flatten(2)
    return mixed.reshape(v.shape[0], 1, *v.shape[2:])


register("ema", EMA, layout="image", family="spatial", example={"c": 64}, upstream={})
