"""Triplet attention: three gates, each from the maximum and the mean over one axis, averaged.

Paper: Rotate to Attend: Convolutional Triplet Attention Module, Misra, Nalamada, Arasanipalai,
    Hou, WACV 2021, arXiv 2010.03045.
Code: landskape-ai/triplet-attention @2cf02fb, `triplet_attention.py`; the older
    `MODELS/triplet_attention.py` computes the same under other parameter names, which load too.
Math: y = x * (cw + hc + hw) / 3, gate = sigmoid(BN(conv([max(x), mean(x)]))), pooled over H for
    cw (rows C, columns W), over W for hc (rows H, columns C) and over C for hw (rows H, columns
    W); without `spatial`, y = x * (cw + hc) / 2.
Shapes: (B, C, H, W) -> (B, C, H, W), for any C.
Differs: the authors permute and copy x for each branch; the gates factor out of the sum, so here
    x is neither permuted nor copied. The channel axis is convolved with zero padding: a block
    after a permutation of channels is another block.
Cost: parameters 3 (2 kernel_size^2 + 2); MACs 2 kernel_size^2 (C W + H C + H W); without
    `spatial` two gates of the three, and no H W.
"""

import torch
from torch import Tensor, nn

from ..autograd import CustomGradient
from ..ops import maximum
from ..ops.chunks import chunks
from ..registry import Cost, InputSize, KnownVariant, register
from ..validation import check
from .cbam import MaxMeanGate


def cost(at: InputSize, c: int, kernel_size: int, spatial: bool) -> Cost:
    window, plane = 2 * kernel_size**2, at.height * at.width
    return Cost(
        params=(2 + spatial) * (window + 2),
        macs=window * (c * (at.width + at.height) + spatial * plane),
    )


def _axes(spatial: bool) -> tuple[int, ...]:
    """The axes pooled away for cw, hc and hw."""
    return (2, 3, 1) if spatial else (2, 3)


def _pool_plain(x: Tensor, spatial: bool) -> tuple[Tensor, ...]:
    pooled = [t for axis in _axes(spatial) for t in (x.max(axis).values, x.mean(axis))]
    return x, *pooled


def _pool_forward(x: Tensor, spatial: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    found = [maximum.max_with_index(x, axis) for axis in _axes(spatial)]
    pooled = [
        t for axis, (top, _) in zip(_axes(spatial), found, strict=True) for t in (top, x.mean(axis))
    ]
    return (x, *pooled), tuple(index for _, index in found)


def _pool_backward(
    needs: tuple[bool, ...],
    args: tuple[Tensor, bool],
    indices: tuple[Tensor, ...],
    dx: Tensor,
    *grads: Tensor,
) -> tuple[Tensor | None, ...]:
    # x goes through `_pool` to `_gate`, whose fresh gradient of it this one is added to.
    x, spatial = args
    axes = _axes(spatial)
    means = [(g / x.shape[axis]).unsqueeze(axis) for g, axis in zip(grads[1::2], axes, strict=True)]
    for at, buffer in chunks(x):
        dx[at].add_(_sum(means, at, buffer))
    for axis, index, grad in zip(axes, indices, grads[::2], strict=True):
        maximum.scatter_to_max(dx, axis, index, grad)
    return dx, None


def _gate_plain(x: Tensor, cw: Tensor, hc: Tensor, hw: Tensor | None) -> Tensor:
    gates = cw[:, :, None] + hc.mT[..., None]
    return x * (gates / 2 if hw is None else (gates + hw[:, None]) / 3)


def _gate_forward(
    x: Tensor, cw: Tensor, hc: Tensor, hw: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    y, shares = torch.empty_like(x), _shares(cw, hc, hw)
    for at, buffer in chunks(x):
        torch.mul(x[at], _sum(shares, at, buffer), out=y[at])
    return y, ()


def _gate_backward(
    needs: tuple[bool, ...],
    args: tuple[Tensor, Tensor, Tensor, Tensor | None],
    saved: tuple[Tensor, ...],
    dy: Tensor,
) -> tuple[Tensor | None, ...]:
    x, cw, hc, hw = args
    shares = _shares(cw, hc, hw)
    dx = torch.empty_like(x)
    d_cw, d_hc = x.new_empty(cw.shape), x.new_empty(hc.shape)
    d_hw = None if hw is None else x.new_empty(hw.shape)
    for at, buffer in chunks(x):
        torch.mul(x[at], dy[at], out=buffer)
        torch.sum(buffer, 2, out=d_cw[at])
        torch.sum(buffer, 3, out=d_hc[at].mT)
        if d_hw is not None:
            torch.sum(buffer, 1, out=d_hw[at])
        torch.mul(dy[at], _sum(shares, at, buffer), out=dx[at])
    return dx, *(None if d is None else d.div_(len(shares)) for d in (d_cw, d_hc, d_hw))


def _shares(cw: Tensor, hc: Tensor, hw: Tensor | None) -> list[Tensor]:
    """What each gate adds to the mean gate, divided where it is small."""
    if hw is None:
        return [(cw / 2)[:, :, None], (hc / 2).mT[..., None]]
    return [(cw / 3)[:, :, None], (hc / 3).mT[..., None], (hw / 3)[:, None]]


def _sum(terms: list[Tensor], at: slice, buffer: Tensor) -> Tensor:
    """The sum of two or three broadcast terms for some samples, in `buffer`."""
    total = torch.add(terms[0][at], terms[1][at], out=buffer)
    return total if len(terms) == 2 else total.add_(terms[2][at])


_pool = CustomGradient(_pool_plain, _pool_forward, _pool_backward)
_gate = CustomGradient(_gate_plain, _gate_forward, _gate_backward)


@register(
    "triplet",
    layout="image",
    family="spatial",
    example={"c": 64},
    cost=cost,
    upstream=(
        {"cw.conv": "cw", "hc.conv": "hc", "hw.conv": "hw"},
        {
            "ChannelGateH.spatial": "cw",
            "ChannelGateW.spatial": "hc",
            "SpatialGate.spatial": "hw",
        },
    ),
    known_variants=(
        KnownVariant(
            whose="changzy00's TripletAttention",
            keys=("ch.conv.conv.weight", "cw.conv.conv.weight", "hw.conv.conv.weight"),
            computes="has a ReLU before each sigmoid, biases, and the mean before the maximum",
        ),
    ),
)
class TripletAttention(nn.Module):
    """Triplet attention on (B, C, H, W).

    Args:
        c: channels in and out; nothing depends on it, and any number of channels runs.
        kernel_size: of the three convolutions, odd.
        spatial: False leaves the (H, W) gate out, the authors' `no_spatial`.

    Raises:
        ValueError: an even `kernel_size`; in training, an input that gives a gate one value.
    """

    def __init__(self, c: int, *, kernel_size: int = 7, spatial: bool = True) -> None:
        super().__init__()
        check.positive(c=c)
        self.cw = MaxMeanGate(kernel_size)
        self.hc = MaxMeanGate(kernel_size)
        self.hw = MaxMeanGate(kernel_size) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, None, self.cw.conv.weight)
        b, c, h, w = x.shape
        check.batch_norm(self.cw.bn, b * c * w, x)
        check.batch_norm(self.hc.bn, b * h * c, x)
        if self.hw is not None:
            check.batch_norm(self.hw.bn, b * h * w, x)
        x, *pooled = _pool(x, self.hw is not None)
        cw = self.cw(*pooled[:2])  # B C W
        hc = self.hc(*(t.mT for t in pooled[2:4]))  # B H C
        hw = self.hw(*pooled[4:]) if self.hw is not None else None  # B H W
        y: Tensor = _gate(x, cw, hc, hw)
        return y
