"""CARAFE stack: four CARAFE upsamplings by 2, to sixteen times the size.

When: features of a patch-16 backbone are wanted at full size, without an image as guidance.
Paper: CARAFE: Content-Aware ReAssembly of FEatures, Wang et al., ICCV 2019, arXiv 1905.02188, as a
    baseline of FeatUp, Fu et al., ICLR 2024, arXiv 2403.10516.
Code: mhamilton723/FeatUp @6b5a6c0e, `featup/upsamplers.py` (`CarafeUpsampler`).
Math: four times x = CARAFE_i(x), each with weights of its own.
Shapes: source (B, C, h, w) -> (B, C, 16 h, 16 w); a guidance is accepted but not used, as theirs.
Differs: in nothing. The windows are 3 x 3 by default, those of `carafe` 5 x 5.
Cost: parameters those of four `carafe`; MACs 85 times those of a `carafe` on the source.
"""

from torch import Tensor, nn

from ..registry import InputSize, register
from ..validation.types import Odd, Width
from .carafe import CARAFE, inputs


class CARAFEStack(nn.Module):
    """Four upsamplings of `source` (B, C, h, w) by 2.

    Args:
        c: channels in and out.
        kernel: side of the windows that are reassembled.
        compressed: channels that the weights are predicted from.
    """

    def __init__(self, c: Width, *, kernel: Odd = 3, compressed: Width = 64) -> None:
        super().__init__()
        self.c = c
        self.up1 = CARAFE(c, kernel=kernel, compressed=compressed)
        self.up2 = CARAFE(c, kernel=kernel, compressed=compressed)
        self.up3 = CARAFE(c, kernel=kernel, compressed=compressed)
        self.up4 = CARAFE(c, kernel=kernel, compressed=compressed)

    def forward(self, source: Tensor, guidance: Tensor | None = None) -> Tensor:
        y: Tensor = self.up4(self.up3(self.up2(self.up1(source))))
        return y

    def macs(self, size: InputSize) -> int:
        return 85 * self.up1.macs(size)  # 1 + 4 + 16 + 64 source pixels

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "carafe_stack",
    CARAFEStack,
    layout="upsampler",
    family="upsampler",
    example={"c": 8, "compressed": 8},
    input_size=InputSize(height=4, width=5),
    inputs=inputs,
)
