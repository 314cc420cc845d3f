"""Pyramid squeeze attention: convolutions of several sizes, weighted by a softmax of their gates.

When: it may replace a 3x3 convolution by convolutions of several sizes that compete per channel.
Paper: EPSANet: An Efficient Pyramid Squeeze Attention Block on Convolutional Neural Network, Zhang,
    Zu, Lu, Zou, Meng, ACCV 2022, arXiv 2105.14447.
Code: murufeng/EPSANet @9955041, `models/epsanet.py`, classes `PSAModule` and `SEWeightModule`.
Math: x_i = conv_i(x), of kernels[i], groups[i] and c_out / S channels, i = 1..S;
    g_i = sigmoid(W2 relu(W1 mean_HW(x_i) + b1) + b2), the same W for every i, of hidden width
    c_out // S // 16; y = concat(a_S x_S, ..., a_1 x_1), a = softmax_i(g_i).
Shapes: (B, C, H, W) -> (B, c_out, H', W'), H' = (H - 1) // stride + 1.
Differs: the code, which we follow, concatenates the branches last to first, and takes the softmax
    of sigmoids: with four branches a weight lies between 0.109 and 0.475. Initialized like the
    module by itself (PyTorch's defaults), not as the authors' network does.
Cost: with w = c_out / S and r = w // 16, parameters sum_i k_i^2 c w / g_i + 2 w r + w + r;
    MACs H' W' sum_i k_i^2 c w / g_i + 2 S w r.
"""

import torch
from torch import Tensor, nn

from ..ops.memory_format import match_memory_format
from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Count, Counts, Odds, Width

_REDUCTION = 16  # fixed in the authors' module


class SEWeight(nn.Module):
    """EPSANet's gate: (..., C) channel means to (..., C) weights, the sigmoid of a bottleneck.

    Args:
        c: channels.
        hidden: width of the bottleneck.
    """

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c, hidden)
        self.fc2 = nn.Linear(hidden, c)

    def forward(self, means: Tensor) -> Tensor:
        gate: Tensor = self.fc2(self.fc1(means).relu()).sigmoid()
        return gate

    def macs(self) -> int:
        return self.fc1.weight.numel() + self.fc2.weight.numel()


class PSA(nn.Module):
    """Pyramid squeeze attention on (B, C, H, W).

    Args:
        c: channels in.
        c_out: channels out; None for `c`.
        kernels: kernel size of each branch, odd.
        groups: groups of each branch's convolution.
        stride: of every convolution.

    Raises:
        ValueError: `groups` and `kernels` of different lengths; branches that do not divide
            `c_out` or have fewer than 16 channels each; a group count that does not divide `c` and
            the width of a branch.
    """

    def __init__(
        self,
        c: Width,
        *,
        c_out: Width | None = None,
        kernels: Odds = (3, 5, 7, 9),
        groups: Counts = (1, 4, 8, 16),
        stride: Count = 1,
    ) -> None:
        super().__init__()
        if len(kernels) != len(groups):
            raise ValueError(
                f"groups={groups} must have an item for each of kernels={kernels}, such as "
                f"groups={(1,) * len(kernels)}"
            )
        c_out, branches = c_out or c, len(kernels)
        width = check.divides(of="c_out", by="branches", c_out=c_out, branches=branches)
        if width < _REDUCTION:
            raise ValueError(
                f"c_out={c_out} gives each of {branches} branches {width} channels, which the gate "
                f"divides by {_REDUCTION}; take c_out={_REDUCTION * branches} or more"
            )
        for g in groups:
            check.divides(of="c", by="groups", c=c, groups=g)
            check.divides(of="width", by="groups", width=width, groups=g)
        self.c, self.stride = c, stride
        self.convs = nn.ModuleList(
            nn.Conv2d(c, width, k, stride, padding=k // 2, groups=g, bias=False)
            for k, g in zip(kernels, groups, strict=True)
        )
        self.se = SEWeight(width, width // _REDUCTION)

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.se)
        maps = [conv(x) for conv in self.convs]  # each B C/S H' W'
        gates = self.se(torch.stack([m.mean((2, 3)) for m in maps]))  # S B C/S
        weights = gates.softmax(0)[..., None, None].to(maps[0].dtype)
        weighed = [a * m for a, m in zip(weights, maps, strict=True)]
        return match_memory_format(torch.cat(weighed[::-1], 1).to(x.dtype), x)

    def macs(self, size: InputSize) -> int:
        pixels = ((size.height - 1) // self.stride + 1) * ((size.width - 1) // self.stride + 1)
        convs = sum(weight.numel() for weight in self.convs.parameters())
        return pixels * convs + len(self.convs) * self.se.macs()

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "psa",
    PSA,
    layout="image",
    family="channel",
    example={"c": 64, "c_out": 64},
    upstream={f"conv_{i + 1}": f"convs.{i}" for i in range(4)},
    known_variants=(
        KnownVariant(
            whose="fightingcv's PSA",
            keys=("convs.0.bias", "se_blocks.0.1.weight"),
            computes="splits the channels over the branches and has a gate for each",
        ),
    ),
)
