"""Efficient channel attention: gates each channel by a convolution along the channel means.

When: channel attention has to be nearly free: it has as many parameters as its kernel has taps.
Paper: ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks, Wang, Wu, Zhu,
    Li, Zuo, Hu, CVPR 2020, arXiv 1910.03151.
Code: BangguWu/ECANet @b332f6b, `models/eca_module.py`, class `eca_layer`.
Math: y = x * sigmoid(w * g), g = mean_HW(x), where w * g is the zero-padded cross-correlation of
    `kernel_size` taps along the channel index. Without a kernel_size the paper's rule gives it:
    t = int(|(log2 c + b) / gamma|), made odd by adding one where t is even.
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the authors' module takes the number of taps, without the paper's rule, and none of their
    released networks follows the rule: their weights need an explicit `kernel_size` (per stage 3,
    5, 5, 7 in ResNet-50). The rule has no lower limit, so that c < 8 gets one tap; timm's EcaModule
    takes at least three. An even kernel_size fails in the authors' forward and raises here.
Cost: with k taps, parameters k; MACs c k.
"""

import math

from torch import Tensor, nn

from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Odd, Positive, Width

_LARGEST = 2**16 - 1  # taps


class ECA(nn.Module):
    """Efficient channel attention on (B, C, H, W).

    Args:
        c: channels in and out.
        kernel_size: taps along the channels, odd; None takes the paper's rule.
        gamma: the rule's divisor.
        b: the rule's offset.

    Raises:
        ValueError: more than 65535 taps.
    """

    def __init__(
        self,
        c: Width,
        *,
        kernel_size: Odd | None = None,
        gamma: Positive = 2.0,
        b: float = 1.0,
    ) -> None:
        super().__init__()
        taps = adaptive_kernel_size(c, gamma, b) if kernel_size is None else kernel_size
        if taps > _LARGEST:
            rule = f", from gamma={gamma} and b={b}," if kernel_size is None else ""
            raise ValueError(f"kernel_size={taps:g}{rule} must be at most {_LARGEST}")
        self.c = c
        self.conv = nn.Conv1d(1, 1, int(taps), padding=int(taps) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.conv)
        g = x.mean((2, 3))  # B C
        z: Tensor = self.conv(g[:, None])[:, 0]
        return x * z.sigmoid()[:, :, None, None].to(x.dtype)

    def macs(self, size: InputSize) -> int:
        return self.c * self.conv.kernel_size[0]

    def extra_repr(self) -> str:
        return f"c={self.c}"


def adaptive_kernel_size(c: int, gamma: float = 2.0, b: float = 1.0) -> float:
    """The paper's number of taps for c channels, odd; infinite if gamma is too small."""
    t = math.trunc(min(abs((math.log2(c) + b) / gamma), float(_LARGEST + 1)))
    return t if t % 2 else t + 1


register(
    "eca",
    ECA,
    layout="image",
    family="channel",
    example={"c": 64},
    upstream={},  # the authors' name is the same
    known_variants=(
        KnownVariant(
            whose="fightingcv's ECAAttention",
            keys=("conv.weight", "conv.bias"),
            computes="has a bias in the convolution",
        ),
    ),
)
