"""Coordinate attention: gates each row and each column of a channel by its strip means.

When: a mobile network needs positions along both axes at the price of two strip means.
Paper: Coordinate Attention for Efficient Mobile Network Design, Hou, Zhou, Feng, CVPR 2021,
    arXiv 2103.02907.
Code: houqb/CoordAttention @7619bea (MIT), `coordatt.py`, class `CoordAtt`; the released network,
    `mbv2_ca.py`, has the same block with conv2, conv3 for conv_h, conv_w. Both namings load.
Math: s = [mean_W(x); mean_H(x)] (c, H + W), t = hswish(BN(W1 s + b1)) (m, H + W) = [t_h; t_w],
    y = x * sigmoid(Ww t_w + bw) * sigmoid(Wh t_h + bh), m = max(8, c // reduction).
Shapes: (B, C, H, W) -> (B, C, H, W); c=1 with `c_out` -> (B, c_out, H, W).
Differs: the paper leaves the activation open and the README says SiLU; the code has h_swish, which
    we follow. The code accepts any `oup` and fails on most in broadcasting; here a `c_out` other
    than c or 1 raises an error unless c is 1. Rows and columns share one BatchNorm, so in training
    the result depends on H : W. changzy00's copy has the same keys but a ReLU and no sigmoid: its
    weights load without an error, but give other outputs.
Cost: with o = c_out, parameters c m + 3 m + 2 (m o + o); MACs (H + W) m (c + o).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd import coordatt, custom_gradient
from ..ops.precision import upcast_dtype
from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Count, Width


def scale(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(B, C, H, W) times a gate for each row (B, C, H, 1) and for each column (B, C, 1, W)."""
    return x * columns * rows


scale = custom_gradient(scale, coordatt.pair)


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

    def __init__(self, c: Width, *, reduction: Count = 32, c_out: Width | None = None) -> None:
        super().__init__()
        gates = c if c_out is None else c_out
        if gates not in (1, c) and c != 1:
            raise ValueError(f"c_out={c_out} gates cannot multiply c={c} channels; take {c} or 1")
        self.c = c
        hidden = max(8, c // reduction)
        self.conv1 = nn.Conv2d(c, hidden, 1)
        self.bn1 = nn.BatchNorm1d(hidden)
        self.conv_h = nn.Conv2d(hidden, gates, 1)
        self.conv_w = nn.Conv2d(hidden, gates, 1)

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.conv1)
        b, _, h, w = x.shape
        check.batch_norm(self.bn1, b * (h + w), x)
        dtype = upcast_dtype(x.dtype)  # sums over a strip can overflow
        s = torch.cat((x.mean(3, dtype=dtype), x.mean(2, dtype=dtype)), 2).to(x.dtype)  # B C H+W
        t = F.hardswish(self.bn1(self.conv1(s[..., None]).squeeze(3)))  # B M H+W
        rows = self.conv_h(t[:, :, :h, None]).sigmoid()  # B O H 1
        columns = self.conv_w(t[:, :, None, h:]).sigmoid()  # B O 1 W
        shared = (-1, max(self.c, rows.shape[1]), -1, -1)
        return scale(x.expand(shared), rows.expand(shared), columns.expand(shared))

    def macs(self, size: InputSize) -> int:
        hidden, gates = self.conv1.out_channels, self.conv_h.out_channels
        return (size.height + size.width) * hidden * (self.c + gates)

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "coordatt",
    CoordAtt,
    layout="image",
    family="spatial",
    example={"c": 64},
    upstream=({}, {"conv2": "conv_h", "conv3": "conv_w"}),
    known_variants=(
        KnownVariant(
            whose="timm's CoordAttn with its default arguments",
            keys=("conv1.weight", "bn1.weight", "conv_h.weight", "conv_w.weight"),
            lacks=("conv1.bias", "conv_h.bias", "conv_w.bias"),
            computes="has no biases and another hidden width",
        ),
    ),
)
