"""Selective kernels: convolutions of several dilations, mixed per channel by a softmax over them.

When: it may replace a 3x3 convolution by several dilations that compete per channel.
Paper: Selective Kernel Networks, Li, Wang, Hu, Yang, CVPR 2019, arXiv 1903.06586.
Code: implus/SKNet @17dd708 (Caffe only, `models/sknet50.prototxt`); the reference vectors were run
    on timm 1.0.31, `SelectiveKernel(split_input=False)`, which is the same list of layers.
Math: U_i = relu(BN_i(conv3x3_i(x))) with dilation 1 + i, i < `branches`,
    z = relu(BN(W1 mean_HW(sum_i U_i))), W1: (d, c), d = max(c // reduction, min_dim),
    y = sum_i a_i U_i, a = softmax_i(W2 z), W2: (branches c, d).
Shapes: (B, C, H, W) -> (B, C, H', W'), H' = (H - 1) // stride + 1.
Differs: paper, Caffe code and this block agree. timm pads asymmetrically at strides above 2, and by
    default splits the channels over the branches; PytorchInsight's has no dilation and no lower
    limit of d; pppLang/SKNet has dense 5x5, biases and no BN or ReLU on z. Caffe initializes by
    msra and gaussian fillers; here PyTorch's defaults, as in timm. Since z has one value per sample
    and channel, training needs a batch of 2 or more.
Cost: with M = branches, G = groups, parameters 9 M c^2 / G + 2 M c + c d + 2 d + M d c;
    MACs 9 M c^2 / G H' W' + c d + M d c.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd import needs_reference_form
from ..ops.folding import is_plain
from ..ops.precision import upcast_dtype
from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Count, Depth, Width


def select(gates: Tensor, *features: Tensor) -> Tensor:
    """The sum over M branches of gates (B, M, C, 1, 1) times features (B, C, H', W') each."""
    y = features[0] * gates[:, 0]
    for i, u in enumerate(features[1:], 1):
        y = torch.addcmul(y, u, gates[:, i])
    return y


class SKConv(nn.Module):
    """Selective kernel convolution on (B, C, H, W).

    Args:
        c: channels in and out.
        branches: number of 3x3 convolutions, of dilation 1, 2, ...
        groups: groups of each convolution.
        reduction: the hidden width of the selection is `max(c // reduction, min_dim)`.
        min_dim: the least hidden width.
        stride: stride of each convolution.

    Raises:
        ValueError: `groups` does not divide `c`; in training, a batch of one sample.
    """

    def __init__(
        self,
        c: Width,
        *,
        branches: Depth = 2,
        groups: Count = 32,
        reduction: Count = 16,
        min_dim: Count = 32,
        stride: Count = 1,
    ) -> None:
        super().__init__()
        check.divides(by="groups", of="c", groups=groups, c=c)
        self.c = c
        self.paths = nn.ModuleList(_Path(c, 1 + i, groups, stride) for i in range(branches))
        self.attn = _Select(c, branches, max(c // reduction, min_dim))

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.attn)
        check.batch_norm(self.attn.bn, x.shape[0], x, grow="batch")
        last = x.is_contiguous() and _channels_last_is_faster(x)
        source = x.contiguous(memory_format=torch.channels_last) if last else x
        features = [path(source) for path in self.paths]  # each B C H' W'
        gates = self.attn(_pooled(features)).to(features[0].dtype)  # B M C 1 1
        y = select(gates, *features)
        return (y.contiguous() if last else y).to(x.dtype)

    def macs(self, size: InputSize) -> int:
        conv = cast(_Path, self.paths[0]).conv
        height, width = ((side - 1) // conv.stride[0] + 1 for side in (size.height, size.width))
        maps = self.attn.fc_reduce.weight.numel() + self.attn.fc_select.weight.numel()
        return len(self.paths) * conv.weight.numel() * height * width + maps

    def extra_repr(self) -> str:
        return f"c={self.c}"


class _Path(nn.Module):
    """One branch: relu(BN(3x3 convolution)), of the given dilation."""

    def __init__(self, c: int, dilation: int, groups: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(
            c, c, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
            # torch 2.15 reads memory past a smaller map for the weight's gradient on a CPU.
            below, right = (max(0, self.stride - side) for side in x.shape[2:])
            x = F.pad(x, (0, right, 0, below)) if below or right else x
        u: Tensor = self.bn(self.conv(x))
        # In place where it may be: a backward hook of the norm's hands out a view.
        return u.relu_() if is_plain(self.bn, nn.BatchNorm2d) else u.relu()


class _Select(nn.Module):
    """The softmax over the branches, from the sum of their means (B, C, 1, 1)."""

    def __init__(self, c: int, branches: int, hidden: int) -> None:
        super().__init__()
        self.branches = branches
        self.fc_reduce = nn.Conv2d(c, hidden, 1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.fc_select = nn.Conv2d(hidden, branches * c, 1, bias=False)

    def forward(self, means: Tensor) -> Tensor:
        z = self.bn(self.fc_reduce(means)).relu()
        scores = self.fc_select(z).unflatten(1, (self.branches, -1))  # B M C 1 1
        weights: Tensor = scores.softmax(1)
        return weights


def _pooled(features: list[Tensor]) -> Tensor:
    """Mean over H, W of the branches' sum, as the sum of their means: (B, C, 1, 1)."""
    dtype = features[0].dtype
    means = [u.mean((2, 3), keepdim=True, dtype=upcast_dtype(dtype)) for u in features]
    return torch.stack(means).sum(0).to(dtype)


def _channels_last_is_faster(x: Tensor) -> bool:
    """Training on a CPU, where convolutions of channels-last tensors are up to twice as fast."""
    return torch.is_grad_enabled() and x.device.type == "cpu" and not needs_reference_form(x)


register(
    "sknet",
    SKConv,
    layout="image",
    family="channel",
    example={"c": 64},
    upstream={},
    known_variants=(
        KnownVariant(
            whose="changzy00's SKLayer",
            keys=("split_3x3.0.weight", "split_5x5.0.weight", "fc.0.bias"),
            computes="has biases in every convolution and linear layer",
        ),
    ),
)
