"""Dual attention: position attention and channel attention side by side, summed.

When: segmentation needs every pixel and every channel to see all others, on a map of stride 8 or
    more.
Paper: Dual Attention Network for Scene Segmentation, Fu, Liu, Tian, Li, Bao, Fang, Lu, CVPR 2019,
    arXiv 1809.02983.
Code: junfu1115/DANet @b0a0fa0, `encoding/models/sseg/danet.py`, class `DANetHead`, up to the
    summed feature.
Math: y = PAM(x) + CAM(x), see `danet_position` and `danet_channel`; with `head=True`
    y = f51(PAM(f5a(x))) + f52(CAM(f5c(x))), each f = ReLU(BN(3x3 convolution without bias)), f5a
    and f5c from c to c // 4 channels; `reduction` then acts on c // 4.
Shapes: (B, C, H, W) -> (B, C, H, W); with head=True (B, C, H, W) -> (B, C // 4, H, W).
Differs: the authors' code has only the head (`head=True`). The default here is the sum of the two
    modules at full width, as other networks use it; it initially returns 2 x, since both modules
    have a residual. Their classifiers (conv6, conv7, conv8) are not part of the block.
Cost: with q = c // reduction, N = H W: parameters 2 q (c + 1) + c (c + 1) + 2;
    MACs N (2 c q + c^2) + N^2 (q + c) + 2 c^2 N. With head=True, i = c // 4, q = i // reduction:
    parameters 18 c i + 18 i^2 + 8 i + 2 q (i + 1) + i (i + 1) + 2;
    MACs N (18 c i + 18 i^2) + N (2 i q + i^2) + N^2 (q + i) + 2 i^2 N.
"""

from torch import Tensor, nn

from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Count, Width
from .danet_channel import CAM
from .danet_position import PAM


class DANet(nn.Module):
    """Dual attention on (B, C, H, W).

    Args:
        c: channels in; also out, unless `head`.
        reduction: queries and keys of the position attention have a `reduction`-th of its channels.
        head: the authors' whole head, `c // 4` channels out, with a convolution before and after
            each attention, instead of the bare sum of the two attentions.

    Raises:
        ValueError: `c`, or with `head` `c // 4`, is less than `reduction`.
    """

    def __init__(self, c: Width, *, reduction: Count = 8, head: bool = False) -> None:
        super().__init__()
        width = c // 4 if head else c
        if head and width < reduction:
            raise ValueError(
                f"reduction={reduction} leaves no channel of c={c} with head=True "
                f"({c} // 4 // {reduction} = 0); take c={4 * reduction} or more"
                + (f", or reduction={width} or less" if width else "")
            )
        self.c, self.head = c, head
        self.sa = PAM(width, reduction=reduction)
        self.sc = CAM(width)
        if head:
            self.conv5a, self.conv5c = _conv(c, width), _conv(c, width)
            self.conv51, self.conv52 = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.sa)
        if not self.head:
            both: Tensor = self.sa(x) + self.sc(x)
            return both
        check.batch_norm(self.conv5a[1], x.numel() // self.c, x)
        position: Tensor = self.conv51(self.sa(self.conv5a(x)))
        channel: Tensor = self.conv52(self.sc(self.conv5c(x)))
        return position + channel

    def macs(self, size: InputSize) -> int:
        width, pixels = self.sa.c, size.height * size.width
        convs = 2 * 9 * (self.c * width + width * width) * pixels if self.head else 0
        return convs + self.sa.macs(size) + self.sc.macs(size)

    def extra_repr(self) -> str:
        return f"c={self.c}, head={self.head}"


def _conv(c: int, c_out: int) -> nn.Sequential:
    """ReLU(BN(3x3 convolution))."""
    return nn.Sequential(
        nn.Conv2d(c, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()
    )


register(
    "danet",
    DANet,
    layout="image",
    family="spatial",
    example={"c": 64},
    upstream={"conv6": None, "conv7": None, "conv8": None},  # other names are the same
    known_variants=(
        KnownVariant(
            whose="fightingcv's DAModule",
            keys=("position_attention_module.cnn.weight", "channel_attention_module.cnn.weight"),
            computes="has scaled dot-product attentions of fixed size, no gamma and no residual",
        ),
        KnownVariant(
            whose="mmsegmentation's DAHead",
            keys=("pam.gamma.scale", "cam.gamma.scale"),
            computes="has the same formulas with other keys and shapes, which are not supported",
        ),
    ),
)
