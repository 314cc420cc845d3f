"""JBU stack: four joint bilateral upsamplings by 2, to sixteen times the size.

When: features of a patch-16 backbone should follow the image's edges at full size.
Paper: FeatUp: A Model-Agnostic Framework for Features at Any Resolution, Fu, Hamilton, Brandt,
    Feldmann, Zhang, Freeman, ICLR 2024, arXiv 2403.10516.
Code: mhamilton723/FeatUp @6b5a6c0e, `featup/upsamplers.py` (`JBUStack`).
Math: four times x = JBU_i(x, pool(guidance)), the whole guidance averaged to twice the size of x;
    y = x + 0.1 (W x + b).
Shapes: source (B, C, h, w), guidance (B, g, ., .) of any size -> (B, C, 16 h, 16 w); 2 h and 2 w
    above `radius`.
Differs: a step is linear in its source and treats all channels alike, so W mixes the small source,
    x + 0.1 W x, and b is added at the end: the same sums in another order, 256 times fewer of them.
    An inner layer that is hooked, wrapped or replaced is called after the steps, as in their code.
Cost: with d = (2 radius + 1)^2 taps, parameters those of four `jbu` + c^2 + c; MACs 340 h w of
    `jbu` per pixel + 256 h w c^2, of which 255 h w c^2 are saved here.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.folding import is_plain, is_pointwise
from ..ops.guidance import double_along
from ..ops.memory_format import match_memory_format
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Rate, Width
from .jbu import JBU, guided


def upsample(
    source: Tensor, guidance: Tensor, steps: Sequence[nn.Module], fixup: nn.Sequential
) -> Tensor:
    """y = x + 0.1 fixup(x) of x, the source after all steps, (B, C, 16 h, 16 w) after four."""
    dropout, conv = fixup[0], fixup[1]
    linear = all(is_plain(step, JBU) for step in steps) and is_plain(fixup, nn.Sequential)
    if linear and is_plain(dropout, nn.Dropout2d) and is_pointwise(conv):
        small = source + 0.1 * F.conv2d(dropout(source), conv.weight)
        y = double_along(small, guidance, steps)
        y = y if conv.bias is None else y + 0.1 * conv.bias[:, None, None]
    else:
        x = double_along(source, guidance, steps)
        y = x + 0.1 * fixup(x)
    return match_memory_format(y.to(source.dtype), source)


def check_maps(
    source: Tensor, guidance: Tensor, widths: tuple[int, int], radius: int, like: nn.Module
) -> None:
    """Check both maps' shapes, and that the first step's map is large enough to reflect."""
    check.image(source, widths[0], like, name="source")
    check.image(guidance, widths[1], like, name="guidance")
    check.same_batch(source=source, guidance=guidance)
    if 2 * source.shape[2] <= radius or 2 * source.shape[3] <= radius:
        least = radius // 2 + 1
        raise ValueError(
            f"source has shape {tuple(source.shape)}; to reflect radius={radius} pixels of twice "
            f"its size it needs at least {least} x {least}: take a larger source or a smaller "
            "radius"
        )


class JBUStack(nn.Module):
    """Four guided upsamplings of `source` (B, C, h, w) by 2, each with separate weights.

    Args:
        c: channels in and out.
        guidance: channels of the guidance.
        key_dim: width of the projection in which pixels of the guidance are compared.
        radius: a window is 2 radius + 1 pixels wide.
        dropout: rate at which channels are dropped; None: the authors' 0.1 inside the steps and
            0.2 of the features before W.
    """

    def __init__(
        self,
        c: Width,
        *,
        guidance: Width = 3,
        key_dim: Width = 32,
        radius: Count = 3,
        dropout: Rate | None = None,
    ) -> None:
        super().__init__()
        self.c, self.guidance, self.radius = c, guidance, radius
        inside, after = (0.1, 0.2) if dropout is None else (dropout, dropout)
        config = {"guidance": guidance, "key_dim": key_dim, "radius": radius}
        self.up1 = JBU(c, **config, dropout=inside)
        self.up2 = JBU(c, **config, dropout=inside)
        self.up3 = JBU(c, **config, dropout=inside)
        self.up4 = JBU(c, **config, dropout=inside)
        self.fixup_proj = nn.Sequential(nn.Dropout2d(after), nn.Conv2d(c, c, 1))

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        widths = (self.c, self.guidance)
        check_maps(source, guidance, widths, self.radius, self.up1)
        steps = (self.up1, self.up2, self.up3, self.up4)
        return upsample(source, guidance, steps, self.fixup_proj)

    def macs(self, size: InputSize) -> int:
        pixels = size.height * size.width
        return 85 * self.up1.macs(size) + 256 * pixels * self.c**2  # 4 + 16 + 64 + 256 = 4 * 85

    def extra_repr(self) -> str:
        return f"c={self.c}, radius={self.radius}"


register(
    "jbu_stack",
    JBUStack,
    layout="upsampler",
    family="upsampler",
    example={"c": 8, "guidance": 4, "key_dim": 4, "radius": 1, "dropout": 0.0},
    input_size=InputSize(height=4, width=5),
    inputs=guided(16),
)
