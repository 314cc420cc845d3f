"""Convolutional block attention: a channel gate, then a spatial gate on what it lets through.

Paper: CBAM: Convolutional Block Attention Module, Woo, Park, Lee, Kweon, ECCV 2018,
    arXiv 1807.06521.
Code: Jongchan/attention-module @459efad, `MODELS/cbam.py`.
Math: u = x * sigmoid(sum_p mlp(p_HW(x))) over the poolings p of `pool_types`, with the shared
    mlp(z) = W2 relu(W1 z + b1) + b2, W1: (c // reduction, c);
    y = u * sigmoid(BN(conv([max_C(u), mean_C(u)]))), one kernel_size x kernel_size convolution.
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the paper has the mean before the maximum and no BatchNorm in the spatial gate; the
    authors' code, which is followed, has the maximum first and BatchNorm of momentum 0.01. Most
    copies on the web lack the biases, the BatchNorm or both: their weights do not fit.
Cost: with r = c // reduction, parameters 2 c r + r + c (+ 2 kernel_size^2 + 2 with the spatial
    gate); MACs 2 c r for each pooling (+ 2 kernel_size^2 H W).
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ..autograd import CustomGradient
from ..ops import maximum
from ..ops.chunks import chunks
from ..registry import Cost, InputSize, KnownVariant, register
from ..validation import check


def cost(
    at: InputSize,
    c: int,
    reduction: int,
    kernel_size: int,
    spatial: bool,
    pool_types: tuple[str, ...],
) -> Cost:
    r, window = c // reduction, 2 * kernel_size**2
    return Cost(
        params=2 * c * r + r + c + spatial * (window + 2),
        macs=len(pool_types) * 2 * c * r + spatial * window * at.height * at.width,
    )


_POOLINGS = {
    "avg": lambda x: x.mean(2),
    "max": lambda x: x.max(2).values,  # one index takes the gradient of a tie, as the authors'
    "lp": lambda x: torch.linalg.vector_norm(x, dim=2),
    "lse": lambda x: x.logsumexp(2),
}


def _pool_plain(x: Tensor) -> tuple[Tensor, ...]:
    plane = x.flatten(2)
    return x, _POOLINGS["avg"](plane), _POOLINGS["max"](plane)


def _pool_forward(x: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    top, index = maximum.max_over_hw(x)
    return (x, x.mean((2, 3)), top), (index,)


def _pool_backward(
    needs: tuple[bool, ...],
    args: tuple[Tensor],
    saved: tuple[Tensor],
    dx: Tensor,
    d_mean: Tensor,
    d_top: Tensor,
) -> tuple[Tensor]:
    # x goes on through these functions, whose fresh gradient of it each one adds to in place.
    dx += (d_mean / dx.shape[2:].numel())[:, :, None, None]
    b, c, _, w = dx.shape
    rows, columns = saved[0].div(w, rounding_mode="floor"), saved[0].remainder(w)
    batch, channel = (torch.arange(n, device=dx.device) for n in (b, c))
    dx.index_put_((batch[:, None], channel, rows, columns), d_top, accumulate=True)
    return (dx,)


def _pool_channels_plain(x: Tensor, s: Tensor) -> tuple[Tensor, ...]:
    u = x * s[:, :, None, None]
    return x, u.max(1).values, u.mean(1)


def _pool_channels_forward(x: Tensor, s: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    top, mean = (x.new_empty(x.shape[:1] + x.shape[2:]) for _ in range(2))
    index = torch.empty_like(top, dtype=torch.long)
    for at, buffer in chunks(x):
        u = torch.mul(x[at], s[at, :, None, None], out=buffer)
        top[at], index[at] = maximum.max_with_index(u, 1)
        torch.mean(u, 1, out=mean[at])
    return (x, top, mean), (index,)


def _pool_channels_backward(
    needs: tuple[bool, ...],
    args: tuple[Tensor, Tensor],
    saved: tuple[Tensor],
    dx: Tensor,
    d_top: Tensor,
    d_mean: Tensor,
) -> tuple[Tensor, Tensor]:
    (x, s), index = args, saved[0][:, None]
    d_mean = d_mean / x.shape[1]
    ds = torch.empty_like(s)
    for at, buffer in chunks(x):
        torch.sum(torch.mul(x[at], d_mean[at, None], out=buffer), (2, 3), out=ds[at])
        dx[at].add_(torch.mul(s[at, :, None, None], d_mean[at, None], out=buffer))
    at_top = index.flatten(1)
    d_top = d_top.flatten(1)
    ds.scatter_add_(1, at_top, d_top * x.gather(1, index).flatten(1))
    maximum.scatter_to_max(
        dx, 1, saved[0], (d_top * s.gather(1, at_top)).view(index.squeeze(1).shape)
    )
    return dx, ds


def _scale_plain(x: Tensor, s: Tensor, gate: Tensor) -> Tensor:
    return x * s[:, :, None, None] * gate[:, None]


def _scale_forward(x: Tensor, s: Tensor, gate: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = torch.empty_like(x)
    for at, buffer in chunks(x):
        torch.mul(x[at], s[at, :, None, None], out=buffer)
        torch.mul(buffer, gate[at, None], out=y[at])
    return y, ()


def _scale_backward(
    needs: tuple[bool, ...],
    args: tuple[Tensor, Tensor, Tensor],
    saved: tuple[Tensor, ...],
    dy: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    x, s, gate = args
    dx, ds, d_gate = torch.empty_like(x), torch.empty_like(s), torch.empty_like(gate)
    for at, buffer in chunks(x):
        torch.mul(dy[at], s[at, :, None, None], out=buffer)
        torch.mul(buffer, gate[at, None], out=dx[at])
        torch.sum(buffer.mul_(x[at]), 1, out=d_gate[at])
        torch.mul(dy[at], gate[at, None], out=buffer)
        torch.sum(buffer.mul_(x[at]), (2, 3), out=ds[at])
    return dx, ds, d_gate


_LEAST = 2**16  # numbers; smaller inputs were slower by hand
_pool = CustomGradient(_pool_plain, _pool_forward, _pool_backward, _LEAST)
_pool_channels = CustomGradient(
    _pool_channels_plain, _pool_channels_forward, _pool_channels_backward, _LEAST
)
_scale = CustomGradient(_scale_plain, _scale_forward, _scale_backward, _LEAST)


class MaxMeanGate(nn.Module):
    """The gate of a plane from the maximum and the mean over the axis that was pooled away.

    Both are (B, P, Q), and so is the gate, sigmoid(BN(conv([maximum, mean]))).

    Args:
        kernel_size: of the convolution over the plane, which is zero-padded to keep its size.
    """

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        check.odd(kernel_size=kernel_size)
        self.conv = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, maximum: Tensor, mean: Tensor) -> Tensor:
        # The two maps as interleaved channels: convolutions of few channels run far faster so.
        pooled = torch.stack((maximum, mean), -1).permute(0, 3, 1, 2)  # B 2 P Q
        logits = self.conv(pooled).squeeze(1)
        # As one contiguous channel again: BatchNorm's backward over channels-last sums in half.
        gate: Tensor = self.bn(logits.unsqueeze(1)).sigmoid()
        return gate.squeeze(1).to(maximum.dtype)


@register(
    "cbam",
    layout="image",
    family="spatial",
    example={"c": 64},
    input_size=InputSize(height=28, width=28),
    cost=cost,
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
        ValueError: `c < reduction`, an even `kernel_size`, an empty `pool_types`; in training,
            an input whose B * H * W is 1.
    """

    def __init__(
        self,
        c: int,
        *,
        reduction: int = 16,
        kernel_size: int = 7,
        spatial: bool = True,
        pool_types: tuple[Literal["avg", "max", "lp", "lse"], ...] = ("avg", "max"),
    ) -> None:
        super().__init__()
        hidden = check.reduced(c, reduction)
        check.odd(kernel_size=kernel_size)
        if not pool_types:
            raise ValueError(f"pool_types={pool_types!r} must name at least one pooling")
        self.c, self.pool_types = c, pool_types
        self.fc1 = nn.Linear(c, hidden)
        self.fc2 = nn.Linear(hidden, c)
        self.spatial = MaxMeanGate(kernel_size) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.fc1.weight)
        x, s = self.channel_gate(x)
        if self.spatial is None:
            return x * s[:, :, None, None]
        check.batch_norm(self.spatial.bn, x.shape[0] * x.shape[2] * x.shape[3], x)
        x, top, mean = _pool_channels(x, s)
        y: Tensor = _scale(x, s, self.spatial(top, mean))
        return y

    def channel_gate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if set(self.pool_types) == {"avg", "max"}:
            x, *poolings = _pool(x)
        else:
            poolings = [_POOLINGS[kind](x.flatten(2)) for kind in self.pool_types]
        pooled = torch.stack(poolings, 1)  # B P C
        logits: Tensor = self.fc2(self.fc1(pooled).relu()).sum(1)  # B C
        return x, logits.sigmoid().to(x.dtype)

    def extra_repr(self) -> str:
        return f"c={self.c}, pool_types={self.pool_types}"
