"""Triplet attention: three gates, each from the maximum and the mean over one axis, averaged.

When: channels and places should be gated for a few hundred parameters, whatever the width.
Paper: Rotate to Attend: Convolutional Triplet Attention Module, Misra, Nalamada, Arasanipalai,
    Hou, WACV 2021, arXiv 2010.03045.
Code: landskape-ai/triplet-attention @2cf02fb, `triplet_attention.py`; the older
    `MODELS/triplet_attention.py` computes the same under other parameter names, which load too.
Math: y = x * (cw + hc + hw) / 3, gate = sigmoid(BN(conv([max(x), mean(x)]))), pooled over H for
    cw (rows C, columns W), over W for hc (rows H, columns C) and over C for hw (rows H, columns
    W); without `spatial`, y = x * (cw + hc) / 2.
Shapes: (B, C, H, W) -> (B, C, H, W), for any C.
Differs: the authors permute and copy x for each branch; the gates factor out of the sum, so here
    x is neither permuted nor copied. Since convolutions run along the channel axis, the order of
    the channels matters.
Cost: parameters 3 (2 kernel_size^2 + 2); MACs 2 kernel_size^2 (C W + H C + H W); without
    `spatial` two gates of the three, and no H W.
"""

from torch import Tensor, nn

from ..autograd import custom_gradient, triplet
from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Odd, Width
from .cbam import MaxMeanGate


def pool(x: Tensor, spatial: bool) -> tuple[Tensor, ...]:
    """(B, C, H, W) itself, and its maximum and mean over H, over W and, if `spatial`, over C."""
    axes = (2, 3, 1) if spatial else (2, 3)
    return x, *(pooled for axis in axes for pooled in (x.max(axis).values, x.mean(axis)))


def scale(x: Tensor, cw: Tensor, hc: Tensor, hw: Tensor | None) -> Tensor:
    """x times the mean of its gates (B, C, W), (B, H, C) and, if there is one, (B, H, W)."""
    gates = cw[:, :, None] + hc.mT[..., None]
    return x * (gates / 2 if hw is None else (gates + hw[:, None]) / 3)


pool = custom_gradient(pool, triplet.pool)
scale = custom_gradient(scale, triplet.scale)


class TripletAttention(nn.Module):
    """Triplet attention on (B, C, H, W).

    Args:
        c: channels in and out; it has no effect, and the input may have any number of channels.
        kernel_size: of the three convolutions, odd.
        spatial: False leaves the (H, W) gate out, the authors' `no_spatial`.

    Raises:
        ValueError: in training, an input that gives a BatchNorm a single value.
    """

    def __init__(self, c: Width, *, kernel_size: Odd = 7, spatial: bool = True) -> None:
        super().__init__()
        self.c = c
        self.cw = MaxMeanGate(kernel_size)
        self.hc = MaxMeanGate(kernel_size)
        self.hw = MaxMeanGate(kernel_size) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, None, self.cw)
        b, c, h, w = x.shape
        check.batch_norm(self.cw.bn, b * c * w, x)
        check.batch_norm(self.hc.bn, b * h * c, x)
        if self.hw is not None:
            check.batch_norm(self.hw.bn, b * h * w, x)
        x, *pooled = pool(x, self.hw is not None)
        cw = self.cw(*pooled[:2])  # B C W
        hc = self.hc(*(t.mT for t in pooled[2:4]))  # B H C
        hw = None if self.hw is None else self.hw(*pooled[4:])  # B H W
        return scale(x, cw, hc, hw)

    def macs(self, size: InputSize) -> int:
        planes = self.cw.macs(self.c * size.width) + self.hc.macs(size.height * self.c)
        return planes + (self.hw.macs(size.height * size.width) if self.hw else 0)

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "triplet",
    TripletAttention,
    layout="image",
    family="spatial",
    example={"c": 64},
    upstream=(
        {"cw.conv": "cw", "hc.conv": "hc", "hw.conv": "hw"},
        {
            "ChannelGateH.spatial": "cw",
            "ChannelGateW.spatial": "hc",
            "SpatialGate.spatial": "hw",
        },
    ),
    known_variants=(
        KnownVariant(
            whose="changzy00's TripletAttention",
            keys=("ch.conv.conv.weight", "cw.conv.conv.weight", "hw.conv.conv.weight"),
            computes="has a ReLU before each sigmoid, biases, and the mean before the maximum",
        ),
    ),
)
