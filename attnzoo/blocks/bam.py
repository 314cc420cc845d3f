"""Bottleneck attention: a channel gate times a spatial gate of dilated convolutions.

When: one gate between the stages of an image network is enough, and some 3x3 convolutions are
    affordable.
Paper: BAM: Bottleneck Attention Module, Park, Woo, Lee, Kweon, BMVC 2018, arXiv 1807.06514.
Code: Jongchan/attention-module @459efad, `MODELS/bam.py`, class `BAM`.
Math: y = x * (1 + sigmoid(g * s)); g = W2 h(W1 mean_HW(x)) (B, C), with h = relu(BN(.)) and
    `channel_layers` hidden layers of c // reduction; s = conv1x1(D(h(conv1x1(x)))) (B, 1, H, W),
    where D is `spatial_layers` times h(3x3 convolution of the given dilation). All have biases.
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the paper adds the branches and ends each with a BatchNorm; the code, with which the
    released weights were trained and which we follow, multiplies them and has no last norm. The
    published code fails on an undefined, unused name; the reference vectors define it. It pools
    over H x H windows, which fails or covers a part of the plane if H and W differ; here the mean
    is over the whole plane, the same if H = W. Initialized like the module by itself (PyTorch's
    defaults), not as the authors' ResNet does.
Cost: with d = c // reduction, k = channel_layers, L = spatial_layers, parameters 3 c d + c + 6 d
    + (k - 1) (d^2 + 3 d) + L (9 d^2 + 3 d) + d + 1; MACs 2 c d + (k - 1) d^2
    + H W (c d + 9 L d^2 + d).
"""

from typing import Annotated

import torch
from torch import Tensor, nn

from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import AtLeast, AtMost, Count, Depth, Width


class BAM(nn.Module):
    """Bottleneck attention module on (B, C, H, W).

    Args:
        c: channels in and out.
        reduction: the hidden width of both gates is `c // reduction`.
        dilation: of the spatial gate's 3x3 convolutions.
        spatial_layers: number of these convolutions.
        channel_layers: number of hidden layers of the channel gate.

    Raises:
        ValueError: `c < reduction`; in training, a batch of one.
    """

    def __init__(
        self,
        c: Width,
        *,
        reduction: Count = 16,
        dilation: Annotated[int, AtLeast(1), AtMost(1000)] = 4,
        spatial_layers: Depth = 2,
        channel_layers: Depth = 1,
    ) -> None:
        super().__init__()
        hidden = check.reduced(c, reduction)
        self.c = c
        self.channel = nn.Sequential()  # its layers have the authors' names
        for i in range(channel_layers):
            self.channel.add_module(f"fc_{i}", nn.Linear(c if i == 0 else hidden, hidden))
            self.channel.add_module(f"bn_{i + 1}", nn.BatchNorm1d(hidden))
            self.channel.add_module(f"relu_{i + 1}", nn.ReLU())
        self.channel.add_module("fc_final", nn.Linear(hidden, c))
        self.spatial = nn.Sequential()
        self._add_conv("reduce0", nn.Conv2d(c, hidden, 1))
        for i in range(spatial_layers):
            conv = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation)
            self._add_conv(f"di_{i}", conv)
        self.spatial.add_module("conv_final", nn.Conv2d(hidden, 1, 1))

    def _add_conv(self, name: str, conv: nn.Conv2d) -> None:
        self.spatial.add_module(f"conv_{name}", conv)
        self.spatial.add_module(f"bn_{name}", nn.BatchNorm2d(conv.out_channels))
        self.spatial.add_module(f"relu_{name}", nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self)
        check.batch_norm(self.channel.get_submodule("bn_1"), x.shape[0], x, grow="batch")
        g = self.channel(x.mean((2, 3)))[:, :, None, None]  # B C 1 1
        s = self.spatial(x)  # B 1 H W
        gate = (g * s).sigmoid().to(x.dtype)
        return torch.addcmul(x, x, gate)

    def macs(self, size: InputSize) -> int:
        channel = sum(m.weight.numel() for m in self.channel if isinstance(m, nn.Linear))
        spatial = sum(m.weight.numel() for m in self.spatial if isinstance(m, nn.Conv2d))
        return channel + size.height * size.width * spatial

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "bam",
    BAM,
    layout="image",
    family="spatial",
    example={"c": 64},
    upstream={
        "channel_att.gate_c.gate_c_*": "channel.*",
        "spatial_att.gate_s.gate_s_*": "spatial.*",
    },
    known_variants=(
        KnownVariant(
            whose="fightingcv's BAMBlock",
            keys=("ca.ca.fc0.weight", "sa.sa.conv_reduce1.weight"),
            computes="adds the gates, of three hidden layers each",
        ),
        KnownVariant(
            whose="changzy00's BAM",
            keys=("channel_attn.mlp.0.weight", "spatial_attn.conv1.weight"),
            computes="adds the gates and ends each with a BatchNorm",
        ),
    ),
)
