"""Triplet attention: three gates, each from the maximum and the mean over one axis, averaged.

Paper: Rotate to Attend: Convolutional Triplet Attention Module, Misra, Nalamada, Arasanipalai,
    Hou, WACV 2021, arXiv 2010.03045.
Code: landskape-ai/triplet-attention @2cf02fb, `triplet_attention.py`; the older
    `MODELS/triplet_attention.py` computes the same under other parameter names, which load too.
Math: y = x * (cw + hc + hw) / 3, gate = sigmoid(BN(conv([max(x), mean(x)]))), pooled over H for
    cw (rows C, columns W), over W for hc (rows H, columns C) and over C for hw (rows H, columns
    W); without `spatial`, y = x * (cw + hc) / 2.
Shapes: (B, C, H, W) -> (B, C, H, W), for any C.
Differs: the authors permute and copy x for each branch; the gates factor out of the sum, so here
    x is neither permuted nor copied. The channel axis is convolved with zero padding: a block
    after a permutation of channels is another block.
Cost: parameters 3 (2 kernel_size^2 + 2); MACs 2 kernel_size^2 (C W + H C + H W); without
    `spatial` two gates of the three, and no H W.
"""

from torch import Tensor, nn

from .. import check
from ..registry import Cost, Extent, register
from .cbam import MaxMeanGate


def cost(at: Extent, c: int, kernel_size: int, spatial: bool) -> Cost:
    window, plane = 2 * kernel_size**2, at.height * at.width
    return Cost(
        params=(2 + spatial) * (window + 2),
        macs=window * (c * (at.width + at.height) + spatial * plane),
    )


@register(
    "triplet",
    layout="image",
    family="spatial",
    example={"c": 64},
    cost=cost,
    upstream=(
        {"cw.conv": "cw", "hc.conv": "hc", "hw.conv": "hw"},
        {
            "ChannelGateH.spatial": "cw",
            "ChannelGateW.spatial": "hc",
            "SpatialGate.spatial": "hw",
        },
    ),
)
class TripletAttention(nn.Module):
    """Triplet attention on (B, C, H, W).

    Args:
        c: channels in and out; nothing depends on it, and any number of channels runs.
        kernel_size: of the three convolutions, odd.
        spatial: False leaves the (H, W) gate out, the authors' `no_spatial`.

    Raises:
        ValueError: an even `kernel_size`; in training, an input that gives a gate one value.
    """

    def __init__(self, c: int, *, kernel_size: int = 7, spatial: bool = True) -> None:
        super().__init__()
        check.positive(c=c)
        self.cw = MaxMeanGate(kernel_size)
        self.hc = MaxMeanGate(kernel_size)
        self.hw = MaxMeanGate(kernel_size) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, None, self.cw.conv.weight)
        b, c, h, w = x.shape
        check.batch_norm(self.cw.bn, b * c * w, x)
        check.batch_norm(self.hc.bn, b * h * c, x)
        if self.hw is not None:
            check.batch_norm(self.hw.bn, b * h * w, x)
        cw: Tensor = self.cw(x.max(2).values, x.mean(2))  # B C W
        hc: Tensor = self.hc(x.max(3).values.mT, x.mean(3).mT)  # B H C
        gates = cw[:, :, None] + hc.mT[..., None]
        if self.hw is None:
            return x * (gates / 2)
        hw: Tensor = self.hw(x.max(1).values, x.mean(1))  # B H W
        return x * ((gates + hw[:, None]) / 3)
