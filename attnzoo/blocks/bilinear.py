"""Bilinear resizing to the guidance's size: the baseline of the upsamplers.

When: as the baseline that every other upsampler has to beat.
Paper: none of its own; the baseline of FeatUp, Fu et al., ICLR 2024, arXiv 2403.10516.
Code: mhamilton723/FeatUp @6b5a6c0e, `featup/upsamplers.py` (`Bilinear`).
Math: out[h, w] is the source at ((h + 1/2) H_s / H - 1/2, (w + 1/2) W_s / W - 1/2), bilinearly
    between the four pixels around, the border repeated.
Shapes: source (B, C, H_s, W_s), guidance (B, ., H, W) -> (B, C, H, W).
Differs: in nothing. The reference vectors are computed from the formula, not by the authors' code,
    which is one call of torch. Downsampling interpolates, too, without averaging.
Cost: no parameters; no products are counted.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Width


class Bilinear(nn.Module):
    """Bilinear resizing of `source` (B, C, H_s, W_s) to the size of `guidance`.

    Args:
        c: channels in and out.
    """

    def __init__(self, c: Width) -> None:
        super().__init__()
        self.c = c

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        """(B, C, H, W); only the size of the guidance (B, ., H, W) is used, of any dtype."""
        check.image(source, self.c, name="source")
        check.dense("guidance", guidance, "(B, C, H, W)")
        if guidance.ndim != 4 or 0 in guidance.shape[2:]:
            raise ValueError(
                f"guidance has shape {tuple(guidance.shape)}; it must be an image (B, C, H, W) "
                "of the size wanted, with H and W of at least 1"
            )
        return F.interpolate(source, guidance.shape[2:], mode="bilinear", align_corners=False)

    def macs(self, size: InputSize) -> int:
        return 0

    def extra_repr(self) -> str:
        return f"c={self.c}"


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    b, h, w = size.batch, size.height, size.width
    photo = (64 * random(b, 1, 2 * h, 2 * w)).byte()  # its values are not used
    return {"source": random(b, config["c"], h, w), "guidance": photo}


register(
    "bilinear",
    Bilinear,
    layout="upsampler",
    family="upsampler",
    example={"c": 64},
    inputs=inputs,
)
