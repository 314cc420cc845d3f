"""Resize-convolution: four bilinear upsamplings by 2, each with a guided convolution added.

When: as the learned baseline of the guided upsamplers.
Paper: a baseline of FeatUp, Fu et al., ICLR 2024, arXiv 2403.10516.
Code: mhamilton723/FeatUp @6b5a6c0e, `featup/upsamplers.py` (`LayeredResizeConv`).
Math: four times x = big + act(conv([big, small])), big = bilinear(x) at twice the size, small =
    bilinear(guidance) at the same size; act is ReLU, in the last step the identity.
Shapes: source (B, C, h, w), guidance (B, g, ., .) of any size -> (B, C, 16 h, 16 w).
Differs: in nothing. As in the authors' code, an even `kernel` pads one more row and column at the
    bottom and right, and the guidance is resized without averaging.
Cost: with k = kernel, parameters 4 ((c + guidance) c k^2 + c); MACs 340 h w (c + guidance) c k^2.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.memory_format import match_memory_format
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Width
from .jbu import guided


class ResizeConv(nn.Module):
    """Four upsamplings of `source` (B, C, h, w) by 2, guided by an image.

    Args:
        c: channels in and out.
        guidance: channels of the guidance.
        kernel: side of the convolutions.
    """

    def __init__(self, c: Width, *, guidance: Width = 3, kernel: Count = 1) -> None:
        super().__init__()
        self.c, self.guidance = c, guidance
        before = (kernel - 1) // 2
        self.pad = (before, kernel - 1 - before) * 2
        self.conv1 = nn.Conv2d(c + guidance, c, kernel)
        self.conv2 = nn.Conv2d(c + guidance, c, kernel)
        self.conv3 = nn.Conv2d(c + guidance, c, kernel)
        self.conv4 = nn.Conv2d(c + guidance, c, kernel)

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        check.image(source, self.c, self.conv1, name="source")
        check.image(guidance, self.guidance, self.conv1, name="guidance")
        check.same_batch(source=source, guidance=guidance)
        x = source
        for conv in (self.conv1, self.conv2, self.conv3):
            big, change = self._doubled(x, guidance, conv)
            x = big + change.relu()
        big, change = self._doubled(x, guidance, self.conv4)
        return match_memory_format(big + change, source)

    def _doubled(self, x: Tensor, guidance: Tensor, conv: nn.Module) -> tuple[Tensor, Tensor]:
        """The map at twice its size, and its correction by the convolution."""
        size = (2 * x.shape[2], 2 * x.shape[3])
        big, small = (F.interpolate(m, size, mode="bilinear") for m in (x, guidance))
        return big, conv(F.pad(torch.cat((big, small), 1), self.pad))

    def macs(self, size: InputSize) -> int:
        return 340 * size.height * size.width * self.conv1.weight.numel()

    def extra_repr(self) -> str:
        return f"c={self.c}, guidance={self.guidance}"


register(
    "resize_conv",
    ResizeConv,
    layout="upsampler",
    family="upsampler",
    example={"c": 16, "guidance": 4},
    inputs=guided(16),
)
