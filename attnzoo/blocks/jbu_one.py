"""SimFeatUp's upsampler: one JBU upsampling by 2 applied four times, to sixteen times the size.

When: as `jbu_stack`, with fewer parameters: one upsampler does all four steps.
Paper: SegEarth-OV: Towards Training-Free Open-Vocabulary Segmentation for Remote Sensing Images,
    Li, Liu, Cao, Bai, Zhou, Meng, Wang, CVPR 2025, arXiv 2410.01768.
Code: likyoo/SegEarth-OV @3e22a969, `simfeatup_dev/upsamplers.py` (`JBUOne`), the same in
    likyoo/SimFeatUp @78a0ba70.
Math: four times x = JBU(x, pool(guidance)), the whole guidance averaged to twice the size of x;
    y = x + 0.1 (W x + b).
Shapes: source (B, C, h, w), guidance (B, g, ., .) of any size -> (B, C, 16 h, 16 w); 2 h and 2 w
    above `radius`.
Differs: W mixes the small source, as in `jbu_stack`. The guidance may have any size; the authors'
    caller always passes 16 times the source's.
Cost: with d = (2 radius + 1)^2 taps, parameters those of one `jbu` + c^2 + c; MACs as `jbu_stack`.
"""

from torch import Tensor, nn

from ..registry import InputSize, register
from ..validation.types import Count, Rate, Width
from .jbu import JBU, guided
from .jbu_stack import check_maps, upsample


class JBUOne(nn.Module):
    """Four guided upsamplings of `source` (B, C, h, w) by 2, with the same weights.

    Args:
        c: channels in and out.
        guidance: channels of the guidance.
        key_dim: width of the projection in which pixels of the guidance are compared.
        radius: a window is 2 radius + 1 pixels wide.
        dropout: rate at which channels are dropped; None: the authors' 0.1 inside the step and
            0.2 of the features before W.
    """

    def __init__(
        self,
        c: Width,
        *,
        guidance: Width = 3,
        key_dim: Width = 32,
        radius: Count = 5,
        dropout: Rate | None = None,
    ) -> None:
        super().__init__()
        self.c, self.guidance, self.radius = c, guidance, radius
        inside, after = (0.1, 0.2) if dropout is None else (dropout, dropout)
        self.up = JBU(c, guidance=guidance, key_dim=key_dim, radius=radius, dropout=inside)
        self.fixup_proj = nn.Sequential(nn.Dropout2d(after), nn.Conv2d(c, c, 1))

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        widths = (self.c, self.guidance)
        check_maps(source, guidance, widths, self.radius, self.up)
        return upsample(source, guidance, (self.up,) * 4, self.fixup_proj)

    def macs(self, size: InputSize) -> int:
        return 85 * self.up.macs(size) + 256 * size.height * size.width * self.c**2

    def extra_repr(self) -> str:
        return f"c={self.c}, radius={self.radius}"


register(
    "jbu_one",
    JBUOne,
    layout="upsampler",
    family="upsampler",
    example={"c": 8, "guidance": 4, "key_dim": 4, "radius": 1, "dropout": 0.0},
    input_size=InputSize(height=4, width=5),
    inputs=guided(16),
)
