"""Coordinate attention: gates each row and each column of a channel by its strip means.

Paper: Coordinate Attention for Efficient Mobile Network Design, Hou, Zhou, Feng, CVPR 2021,
    arXiv 2103.02907.
Code: houqb/CoordAttention @7619bea (MIT), `coordatt.py`, class `CoordAtt`; the released network,
    `mbv2_ca.py`, has the same block with conv2, conv3 for conv_h, conv_w. Both namings load.
Math: s = [mean_W(x); mean_H(x)] (c, H + W), t = hswish(BN(W1 s + b1)) (m, H + W) = [t_h; t_w],
    y = x * sigmoid(Ww t_w + bw) * sigmoid(Wh t_h + bh), m = max(8, c // reduction).
Shapes: (B, C, H, W) -> (B, C, H, W); c=1 with `c_out` -> (B, c_out, H, W).
Differs: the paper leaves the activation open and the README says SiLU; the code has h_swish, which
    we follow. The code takes any `oup` and fails on most in the broadcast; `c_out` other than c or
    1 is refused here unless c is 1. Rows and columns share one BatchNorm, so in training the
    result depends on H : W.
Cost: with o = c_out, parameters c m + 3 m + 2 (m o + o); MACs (H + W) m (c + o).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import check
from ..registry import Cost, Extent, register


def cost(at: Extent, c: int, reduction: int, c_out: int | None) -> Cost:
    m, o = max(8, c // reduction), c_out or c
    return Cost(params=c * m + 3 * m + 2 * (m * o + o), macs=(at.height + at.width) * m * (c + o))


@register(
    "coordatt",
    layout="image",
    family="spatial",
    example={"c": 64},
    cost=cost,
    upstream=({}, {"conv2": "conv_h", "conv3": "conv_w"}),
)
class CoordAtt(nn.Module):
    """Coordinate attention on (B, C, H, W).

    Args:
        c: channels in.
        reduction: the shared hidden width is `max(8, c // reduction)`.
        c_out: channels of the two gates: `c` (the default), or 1 for one gate over all channels;
            where `c` is 1, any number, and the output has that many channels.

    Raises:
        ValueError: `c_out` is neither `c` nor 1, and `c` is not 1.
    """

    def __init__(self, c: int, *, reduction: int = 32, c_out: int | None = None) -> None:
        super().__init__()
        gates = c if c_out is None else c_out
        check.positive(c=c, reduction=reduction, c_out=gates)
        if gates not in (1, c) and c != 1:
            raise ValueError(f"c_out={c_out} gates cannot multiply c={c} channels; take {c} or 1")
        self.c = c
        hidden = max(8, c // reduction)
        self.conv1 = nn.Conv2d(c, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv_h = nn.Conv2d(hidden, gates, 1)
        self.conv_w = nn.Conv2d(hidden, gates, 1)

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.conv1.weight)
        b, _, h, w = x.shape
        check.batch_norm(self.bn1, b * (h + w), x)
        strips = torch.cat((x.mean(3), x.mean(2)), 2)[..., None]  # B C H+W 1
        t = F.hardswish(self.bn1(self.conv1(strips)))
        rows = self.conv_h(t[:, :, :h]).sigmoid().to(x.dtype)  # B O H 1
        columns = self.conv_w(t[:, :, h:]).sigmoid().to(x.dtype).mT  # B O 1 W
        gated: Tensor = x * columns * rows
        return gated

    def extra_repr(self) -> str:
        return f"c={self.c}"
