"""CARAFE: each output pixel reassembles a window of the source by weights predicted from it.

When: a decoder or feature pyramid doubles its maps and has no high-resolution guidance.
Paper: CARAFE: Content-Aware ReAssembly of FEatures, Wang et al., ICCV 2019, arXiv 1905.02188.
Code: open-mmlab/mmcv @a8073c74, `mmcv/ops/carafe.py` (`CARAFEPack`), which is the authors'
    myownskyW7/CARAFE @aae8999.
Math: m = content_encoder(channel_compressor(x)), for each of `scale`^2 pixels within a source pixel
    a softmax over the K x K taps, K = kernel, in each of `groups`;
    out[s h + i, s w + j] = sum_ab m_ab x[h - K // 2 + a, w - K // 2 + b].
Shapes: source (B, C, H, W) -> (B, C, s H, s W); a guidance is accepted but not used.
Differs: the authors' code runs only on CUDA; here the weights' softmax is float32 for half
    precision. Pixels outside the map are zeros that keep their weights, as in theirs: borders fade.
Cost: with m = compressed, e = encoder_kernel and n = K^2 groups s^2, parameters c m + m +
    m e^2 n + n; MACs H W (c m + m e^2 n) + s^2 H W K^2 c.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd.windows import window_sum
from ..ops.memory_format import match_memory_format
from ..ops.precision import autocast_disabled, upcast
from ..ops.windows import fine_map
from ..registry import Inputs, InputSize, KnownVariant, Random, register
from ..validation import check
from ..validation.types import Count, Odd, Width


class CARAFE(nn.Module):
    """Upsampling of `source` (B, C, H, W) by a whole factor.

    Args:
        c: channels in and out.
        scale: factor of height and width.
        kernel: side of the window that is reassembled.
        groups: groups of channels with separate weights; must divide `c`.
        encoder_kernel: side of the convolution that predicts the weights.
        encoder_dilation: its dilation.
        compressed: channels that the weights are predicted from.

    Raises:
        ValueError: `groups` does not divide `c`, or an even `encoder_kernel` with an odd
            `encoder_dilation`, which cannot be padded symmetrically.
    """

    def __init__(
        self,
        c: Width,
        *,
        scale: Count = 2,
        kernel: Odd = 5,
        groups: Count = 1,
        encoder_kernel: Count = 3,
        encoder_dilation: Count = 1,
        compressed: Width = 64,
    ) -> None:
        super().__init__()
        check.divides(of="c", by="groups", c=c, groups=groups)
        reach = (encoder_kernel - 1) * encoder_dilation
        if reach % 2:
            raise ValueError(
                f"encoder_kernel={encoder_kernel} with encoder_dilation={encoder_dilation} spans "
                f"{reach + 1} pixels, which have no middle; take encoder_kernel="
                f"{encoder_kernel - 1} or {encoder_kernel + 1}, or an even encoder_dilation"
            )
        self.c, self.scale, self.kernel, self.groups = c, scale, kernel, groups
        self.channel_compressor = nn.Conv2d(c, compressed, 1)
        self.content_encoder = nn.Conv2d(
            compressed,
            kernel**2 * groups * scale**2,
            encoder_kernel,
            padding=reach // 2,
            dilation=encoder_dilation,
        )
        nn.init.xavier_uniform_(self.channel_compressor.weight)
        nn.init.normal_(self.content_encoder.weight, std=0.001)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, source: Tensor, guidance: Tensor | None = None) -> Tensor:
        check.image(source, self.c, self.content_encoder, name="source")
        b, c, h, w = source.shape
        k, g, s = self.kernel, self.groups, self.scale
        m = upcast(self.content_encoder(self.channel_compressor(source)))  # B (G K K ss) H W
        weights = m.reshape(b, g, k * k, s * s, h, w).softmax(2).reshape(b, g, k, k, s * s, h, w)
        edge = k // 2
        x = F.pad(upcast(source), (edge,) * 4)
        x = x.reshape(b, g, c // g, h + 2 * edge, w + 2 * edge)
        with autocast_disabled(source):
            y = window_sum(x, weights.to(x.dtype))  # B G c/G ss H W
        y = fine_map(y.flatten(1, 2), s).to(source.dtype)
        return match_memory_format(y, source)

    def macs(self, size: InputSize) -> int:
        encoder = self.channel_compressor.weight.numel() + self.content_encoder.weight.numel()
        reassembly = self.scale**2 * self.kernel**2 * self.c
        return size.height * size.width * (encoder + reassembly)

    def extra_repr(self) -> str:
        return f"c={self.c}, scale={self.scale}, kernel={self.kernel}, groups={self.groups}"


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    return {"source": random(size.batch, config["c"], size.height, size.width)}


register(
    "carafe",
    CARAFE,
    layout="upsampler",
    family="upsampler",
    example={"c": 32, "compressed": 16},
    inputs=inputs,
    known_variants=(
        KnownVariant(
            whose="XiaLiPKU/CARAFE and the YOLO forks of it",
            keys=("comp.conv.weight", "comp.bn.weight", "enc.conv.weight", "enc.bn.weight"),
            computes="normalizes and activates after its convolutions, which have no biases",
        ),
    ),
)
