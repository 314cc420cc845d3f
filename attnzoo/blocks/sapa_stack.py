"""SAPA stack: four SAPA upsamplings by 2, to sixteen times the size.

When: features of a patch-16 backbone are wanted at full size, guided by pooled images.
Paper: SAPA: Similarity-Aware Point Affiliation for Feature Upsampling, Lu et al., NeurIPS 2022,
    arXiv 2209.12866, as a baseline of FeatUp, Fu et al., ICLR 2024, arXiv 2403.10516.
Code: mhamilton723/FeatUp @6b5a6c0e, `featup/upsamplers.py` (`SAPAUpsampler`).
Math: four times x = SAPA_i(x, pool(guidance)), the whole guidance averaged to twice the size of x.
Shapes: source (B, C, h, w), guidance (B, g, ., .) of any size -> (B, C, 16 h, 16 w).
Differs: in nothing.
Cost: parameters those of four `sapa`; MACs 85 times those of a `sapa` on the source.
"""

from torch import Tensor, nn

from ..ops.guidance import double_along
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Odd, Width
from .jbu import guided
from .sapa import SAPA


class SAPAStack(nn.Module):
    """Four guided upsamplings of `source` (B, C, h, w) by 2.

    Args:
        c: channels in and out.
        guidance: channels of the guidance.
        kernel: side of the windows that pixels attend to.
        dim: width of queries and keys.
    """

    def __init__(self, c: Width, *, guidance: Width = 3, kernel: Odd = 5, dim: Width = 64) -> None:
        super().__init__()
        self.c, self.guidance = c, guidance
        self.up1 = SAPA(c, guidance=guidance, kernel=kernel, dim=dim)
        self.up2 = SAPA(c, guidance=guidance, kernel=kernel, dim=dim)
        self.up3 = SAPA(c, guidance=guidance, kernel=kernel, dim=dim)
        self.up4 = SAPA(c, guidance=guidance, kernel=kernel, dim=dim)

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        weight = self.up1.norm_y
        check.image(source, self.c, weight, name="source")
        check.image(guidance, self.guidance, weight, name="guidance")
        check.same_batch(source=source, guidance=guidance)
        return double_along(source, guidance, (self.up1, self.up2, self.up3, self.up4))

    def macs(self, size: InputSize) -> int:
        return 85 * self.up1.macs(size)  # 1 + 4 + 16 + 64 source pixels

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "sapa_stack",
    SAPAStack,
    layout="upsampler",
    family="upsampler",
    example={"c": 8, "guidance": 4, "dim": 8, "kernel": 3},
    input_size=InputSize(height=4, width=5),
    inputs=guided(16),
)
