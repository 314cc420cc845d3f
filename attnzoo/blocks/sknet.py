"""Selective kernels: convolutions of several reaches, mixed per channel by a softmax over them.

Paper: Selective Kernel Networks, Li, Wang, Hu, Yang, CVPR 2019, arXiv 1903.06586.
Code: implus/SKNet @17dd708 (Caffe only, `models/sknet50.prototxt`); the reference vectors were run
    on timm 1.0.31, `SelectiveKernel(split_input=False)`, which is the same list of layers.
Math: U_i = relu(BN_i(conv3x3_i(x))) with dilation 1 + i, i < `branches`,
    z = relu(BN(W1 mean_HW(sum_i U_i))), W1: (d, c), d = max(c // reduction, min_dim),
    y = sum_i a_i U_i, a = softmax_i(W2 z), W2: (branches c, d).
Shapes: (B, C, H, W) -> (B, C, H', W'), H' = (H - 1) // stride + 1.
Differs: paper and Caffe agree, and we with them. timm pads more at strides above 2, off center,
    and by default splits the channels over the branches; PytorchInsight's has no dilation and no
    floor on d; pppLang/SKNet has dense 5x5, biases and no BN or ReLU on z. Caffe initializes by
    msra and gaussian fillers; here PyTorch's defaults, as timm. Since z is one value a sample,
    training needs a batch of two at least.
Cost: with M = branches, G = groups, parameters 9 M c^2 / G + 2 M c + c d + 2 d + M d c;
    MACs 9 M c^2 / G H' W' + c d + M d c.
"""

import torch
from torch import Tensor, nn

from ..autograd import CustomGradient, needs_reference_form
from ..registry import Cost, InputSize, KnownVariant, register
from ..validation import check


def cost(
    at: InputSize, c: int, branches: int, groups: int, reduction: int, min_dim: int, stride: int
) -> Cost:
    d = max(c // reduction, min_dim)
    convs, maps = 9 * branches * c * c // groups, c * d * (1 + branches)
    pixels = ((at.height - 1) // stride + 1) * ((at.width - 1) // stride + 1)
    return Cost(params=convs + maps + 2 * branches * c + 2 * d, macs=convs * pixels + maps)


@register(
    "sknet",
    layout="image",
    family="channel",
    example={"c": 64},
    cost=cost,
    upstream={},
    known_variants=(
        KnownVariant(
            whose="changzy00's SKLayer",
            keys=("split_3x3.0.weight", "split_5x5.0.weight", "fc.0.bias"),
            computes="has biases in every convolution and linear layer",
        ),
    ),
)
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
        ValueError: `groups` does not divide `c`.
    """

    def __init__(
        self,
        c: int,
        *,
        branches: int = 2,
        groups: int = 32,
        reduction: int = 16,
        min_dim: int = 32,
        stride: int = 1,
    ) -> None:
        super().__init__()
        check.layers(branches=branches)
        check.positive(reduction=reduction, min_dim=min_dim, stride=stride)
        check.divides(by="groups", of="c", groups=groups, c=c)
        self.c = c
        self.paths = nn.ModuleList(_Path(c, 1 + i, groups, stride) for i in range(branches))
        self.attn = _Select(c, branches, max(c // reduction, min_dim))

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.attn.fc_reduce.weight)
        check.batch_norm(self.attn.bn, x.shape[0], x, grow="batch")
        # Training on a CPU, convolutions of channels-last tensors are up to twice as fast.
        eager = torch.is_grad_enabled() and x.device.type == "cpu" and not needs_reference_form(x)
        last = eager and x.is_contiguous()
        source = x.contiguous(memory_format=torch.channels_last) if last else x
        features = [path(source) for path in self.paths]  # each B C H' W'
        gates = self.attn(_pooled(features)).to(features[0].dtype)  # B M C 1 1
        y: Tensor = _mixed(gates, *features)
        return (y.contiguous() if last else y).to(x.dtype)

    def extra_repr(self) -> str:
        return f"c={self.c}"


class _Path(nn.Module):
    """One branch: relu(BN(3x3 convolution)), of the given dilation."""

    def __init__(self, c: int, dilation: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            c, c, 3, stride, padding=dilation, dilation=dilation, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        v = self.conv(x)
        check.batch_norm(self.bn, v.numel() // v.shape[1], x)
        u: Tensor = self.bn(v).relu_()
        return u


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
    first = features[0]
    wide = torch.promote_types(first.dtype, torch.float32)
    sums = torch.stack([u.sum((2, 3), keepdim=True, dtype=wide) for u in features])
    return (sums.sum(0) / (first.shape[2] * first.shape[3])).to(first.dtype)


def _plain(gates: Tensor, *features: Tensor) -> Tensor:
    """Sum over i of gates (B, M, C, 1, 1) times features (B, C, H', W')."""
    y = features[0] * gates[:, 0]
    for i, u in enumerate(features[1:], 1):
        y = torch.addcmul(y, u, gates[:, i])
    return y


def _forward(gates: Tensor, *features: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = features[0] * gates[:, 0]
    for i, u in enumerate(features[1:], 1):
        y.addcmul_(u, gates[:, i])
    return y, ()


def _backward(
    needs: tuple[bool, ...], args: tuple[Tensor, ...], saved: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """One large tensor a branch: the product its gate's sum runs over, then its gradient."""
    gates, *features = args
    if features[0].is_contiguous(memory_format=torch.channels_last):
        grad = grad.contiguous(memory_format=torch.channels_last)
    d_gates, d_features = [], []
    for gate, u, need in zip(gates.unbind(1), features, needs[1:], strict=True):
        work = u * grad
        d_gates.append(work.sum((2, 3), keepdim=True))
        d_features.append(torch.mul(grad, gate, out=work) if need else None)
    return torch.stack(d_gates, 1), *d_features


_mixed = CustomGradient(_plain, _forward, _backward)
