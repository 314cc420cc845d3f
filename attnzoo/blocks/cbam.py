"""Convolutional block attention: a channel gate, then a spatial gate on its output.

When: each stage of a convolutional network should weigh channels and places, at almost no cost in
    products.
Paper: CBAM: Convolutional Block Attention Module, Woo, Park, Lee, Kweon, ECCV 2018,
    arXiv 1807.06521.
Code: Jongchan/attention-module @459efad, `MODELS/cbam.py`.
Math: u = x * sigmoid(sum_p mlp(p_HW(x))) over the poolings p of `pool_types`, with the shared
    mlp(z) = W2 relu(W1 z + b1) + b2, W1: (c // reduction, c);
    y = u * sigmoid(BN(conv([max_C(u), mean_C(u)]))), one kernel_size x kernel_size convolution.
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the paper has the mean before the maximum and no BatchNorm in the spatial gate; the
    authors' code, which we follow, has the maximum first and BatchNorm of momentum 0.01. Most
    copies on the web lack the biases, the BatchNorm or both: their weights cannot be loaded.
Cost: with r = c // reduction, parameters 2 c r + r + c (+ 2 kernel_size^2 + 2 with the spatial
    gate); MACs 2 c r for each pooling (+ 2 kernel_size^2 H W).
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ..autograd import cbam, custom_gradient
from ..ops.maximum import largest
from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Count, NotEmpty, Odd, Width

PoolTypes = Annotated[tuple[Literal["avg", "max", "lp", "lse"], ...], NotEmpty()]


def pool(x: Tensor) -> tuple[Tensor, ...]:
    """(B, C, H, W) itself, and its mean and maximum over the plane: (B, C)."""
    plane = x.flatten(2)
    return x, _POOLINGS["avg"](plane), _POOLINGS["max"](plane)


def pool_channels(x: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    """x itself, and the maximum and mean over channels of u = s * x: (B, H, W); s is (B, C)."""
    u = x * s[:, :, None, None]
    return x, largest(u, 1), u.mean(1)


def scale(x: Tensor, s: Tensor, gate: Tensor) -> Tensor:
    """x times the gate of its channels (B, C) and the gate of its pixels (B, H, W)."""
    return x * s[:, :, None, None] * gate[:, None]


pool = custom_gradient(pool, cbam.pool)
pool_channels = custom_gradient(pool_channels, cbam.pool_channels)
scale = custom_gradient(scale, cbam.scale)


class CBAM(nn.Module):
    """CBAM on (B, C, H, W).

    Args:
        c: channels in and out.
        reduction: the MLP's hidden width is `c // reduction`.
        kernel_size: of the spatial gate's convolution, odd.
        spatial: False leaves the spatial gate out, the authors' `no_spatial`.
        pool_types: poolings over the plane that the channel gate adds up, of "avg", "max",
            "lp" (the L2 norm) and "lse" (log-sum-exp).

    Raises:
        ValueError: `c < reduction`; in training, an input whose B * H * W is 1.
    """

    def __init__(
        self,
        c: Width,
        *,
        reduction: Count = 16,
        kernel_size: Odd = 7,
        spatial: bool = True,
        pool_types: PoolTypes = ("avg", "max"),
    ) -> None:
        super().__init__()
        hidden = check.reduced(c, reduction)
        self.c, self.pool_types = c, pool_types
        self.fc1 = nn.Linear(c, hidden)
        self.fc2 = nn.Linear(hidden, c)
        self.spatial = MaxMeanGate(kernel_size) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.fc1)
        x, s = self.channel_gate(x)
        if self.spatial is None:
            return x * s[:, :, None, None]
        check.batch_norm(self.spatial.bn, x.shape[0] * x.shape[2] * x.shape[3], x)
        x, top, mean = pool_channels(x, s)
        return scale(x, s, self.spatial(top, mean))

    def channel_gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x itself, and the gate of its channels (B, C)."""
        if sorted(self.pool_types) == ["avg", "max"]:
            x, *pooled = pool(x)
        else:
            pooled = [_POOLINGS[kind](x.flatten(2)) for kind in self.pool_types]
        z = torch.stack(pooled, 1)  # B P C
        logits: Tensor = self.fc2(self.fc1(z).relu()).sum(1)  # B C
        return x, logits.sigmoid().to(x.dtype)

    def macs(self, size: InputSize) -> int:
        mlp = len(self.pool_types) * 2 * self.c * self.fc1.out_features
        return mlp + (self.spatial.macs(size.height * size.width) if self.spatial else 0)

    def extra_repr(self) -> str:
        return f"c={self.c}, pool_types={self.pool_types}"


class MaxMeanGate(nn.Module):
    """The gate of a plane from the maximum and the mean over the axis that was pooled away.

    Both are (B, P, Q), and so is the gate, sigmoid(BN(conv([maximum, mean]))).

    Args:
        kernel_size: of the convolution over the plane, which is zero-padded to keep its size.
    """

    def __init__(self, kernel_size: Odd) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, maximum: Tensor, mean: Tensor) -> Tensor:
        # The two maps as channels-last channels: convolutions of few channels are far faster so.
        pooled = torch.stack((maximum, mean), -1).permute(0, 3, 1, 2)  # B 2 P Q
        logits = self.conv(pooled).squeeze(1)
        # Contiguous again: in channels-last, BatchNorm's backward pass sums in half precision.
        gate: Tensor = self.bn(logits.unsqueeze(1)).sigmoid()
        return gate.squeeze(1)

    def macs(self, plane: int) -> int:
        """Multiply-adds for a plane of the given number of values."""
        return self.conv.weight.numel() * plane


_POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda x: x.mean(2),
    "max": lambda x: largest(x, 2),
    "lp": lambda x: torch.linalg.vector_norm(x, dim=2),
    "lse": lambda x: x.logsumexp(2),
}

register(
    "cbam",
    CBAM,
    layout="image",
    family="spatial",
    example={"c": 64},
    input_size=InputSize(height=28, width=28),
    upstream={
        "ChannelGate.mlp.1": "fc1",
        "ChannelGate.mlp.3": "fc2",
        "SpatialGate.spatial": "spatial",
    },
    known_variants=(
        KnownVariant(
            whose="fightingcv's CBAMBlock",
            keys=("ca.se.0.weight", "sa.conv.bias"),
            computes="adds its input, and has no BatchNorm and no biases in the MLP",
        ),
        KnownVariant(
            whose="changzy00's CBAM",
            keys=("ca.fc.0.weight", "sa.conv.weight"),
            computes="has the mean before the maximum, no BatchNorm and no biases",
        ),
        KnownVariant(
            whose="luuuyi/CBAM.PyTorch, the common copy on the web",
            keys=("ca.fc.0.weight", "sa.conv1.weight"),
            computes="has the mean before the maximum, no BatchNorm and no biases",
        ),
        KnownVariant(
            whose="timm's CbamModule",
            keys=("channel.fc1.weight", "spatial.conv.conv.weight"),
            computes="has the mean before the maximum, and by default no biases in the MLP",
        ),
    ),
)
