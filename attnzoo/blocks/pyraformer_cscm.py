"""Coarser-scale construction: a series and its summaries at ever coarser scales, as one sequence.

When: only the multi-scale summaries of a series are wanted, for attention of your own.
Paper: Pyraformer: Low-Complexity Pyramidal Attention for Long-Range Time Series Modeling and
    Forecasting, Liu et al., ICLR 2022, OpenReview 0EXmFzUn5I.
Code: ant-research/Pyraformer @ 84af4db, `pyraformer/Layers.py`, Bottleneck_Construct,
    Conv_Construct, MaxPooling_Construct, AvgPooling_Construct.
Math: t_0 = W_down x + b (kind "bottleneck") or x; t_l = ELU(BN(Conv(t_(l-1)))) with kernel and
    stride w_l = windows[l - 1] (kinds "bottleneck", "conv"), or the maximum or mean of w_l steps;
    y = LN([x; W_up [t_1; ...; t_n] + b]), W_up only for "bottleneck".
Shapes: (..., T, C) -> (..., S, C), S = T + L_1 + ... + L_n, L_l = floor(L_(l-1) / w_l), finest
    first; T is at least the product of `windows`.
Differs: the authors' convolution and pooling kinds always have three levels, here any number. As in
    theirs, remaining steps at the end that do not fill a window are not summarized.
Cost: with d = `bottleneck`: parameters 2 c d + d + c + sum_l (d^2 w_l + 3 d) + 2 c, MACs
    T c d + sum_l L_l d^2 w_l + (S - T) d c; "conv" has d = c without the projections; pooling
    has 2 c parameters and no MACs.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.folding import is_plain
from ..ops.leading import fold, unfold
from ..ops.precision import downcast
from ..ops.pyramid import level_sizes
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Counts, Width

Kind = Literal["bottleneck", "conv", "max", "avg"]


class CSCM(nn.Module):
    """Coarser-scale construction module on (..., T, C).

    Args:
        c: channels in and out.
        windows: how many nodes of a level one node of the next summarizes, finest first.
        kind: "bottleneck" (convolutions between projections), "conv", "max" or "avg".
        bottleneck: width of the convolutions of kind "bottleneck"; `c // 4` by default.

    Raises:
        ValueError: a bottleneck of width 0; fewer steps than the product of `windows`.
    """

    def __init__(
        self,
        c: Width,
        *,
        windows: Counts = (4, 4, 4),
        kind: Kind = "bottleneck",
        bottleneck: Width | None = None,
    ) -> None:
        super().__init__()
        self.c, self.kind, self.windows = c, kind, windows
        width = c
        if kind == "bottleneck":
            width = quarter(c, "bottleneck") if bottleneck is None else bottleneck
            self.down = nn.Linear(c, width)
            self.up = nn.Linear(width, c)
        if kind in ("bottleneck", "conv"):
            self.levels = nn.ModuleList(_Level(width, window) for window in windows)
        self.norm = nn.LayerNorm(c)

    def forward(
        self, x: Tensor, *, lengths: Tensor | None = None, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        check.sequence(x, self.c, self.norm)
        if key_padding_mask is not None:
            raise ValueError(
                "key_padding_mask: the output has nodes of every level, whose number depends on a "
                "sample's length; put its steps first and give their number, lengths= of shape "
                f"{tuple(x.shape[:-2])}: it has n // windows[0] nodes of the next level, and so on"
            )
        lengths = None if lengths is None else lengths.reshape(-1)
        sizes = level_sizes(x.shape[-2], self.windows)
        series = downcast(fold(x), self.norm)  # N T C
        if self.kind in ("max", "avg"):
            coarse = self._pooled(series)  # N S-T C
        else:
            check.batch_norm(
                cast(_Level, self.levels[-1]).norm,
                series.shape[0] * sizes[-1],
                x,
                grow="batch or T",
            )
            coarse = self._convolved(series, lengths)
        return unfold(self.norm(torch.cat((series, coarse), 1)), x).to(x.dtype)

    def _convolved(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        t = self.down(x) if self.kind == "bottleneck" else x
        summaries = []
        for level, window in zip(self.levels, self.windows, strict=True):
            lengths = None if lengths is None else lengths // window
            t = level(t, lengths)
            summaries.append(t)
        nodes = torch.cat(summaries, 1)
        return self.up(nodes) if self.kind == "bottleneck" else nodes

    def _pooled(self, x: Tensor) -> Tensor:
        pool = F.max_pool1d if self.kind == "max" else F.avg_pool1d
        levels = [x.mT]
        for window in self.windows:
            levels.append(pool(levels[-1], window))
        return torch.cat(levels[1:], 2).mT

    def macs(self, size: InputSize) -> int:
        if self.kind in ("max", "avg"):
            return 0
        sizes = level_sizes(size.steps, self.windows)
        convs = [m for m in self.levels.modules() if isinstance(m, nn.Conv1d)]
        macs = sum(n * m.weight.numel() for n, m in zip(sizes[1:], convs, strict=True))
        return macs + (sum(sizes) * self.up.weight.numel() if self.kind == "bottleneck" else 0)

    def extra_repr(self) -> str:
        return f"c={self.c}, windows={self.windows}, kind={self.kind!r}"


class _Level(nn.Module):
    """ELU(BN(convolution)) of consecutive windows, (N, T, D) to (N, T // window, D)."""

    def __init__(self, c: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.conv = nn.Conv1d(c, c, window, stride=window)
        self.norm = nn.BatchNorm1d(c)

    def forward(self, x: Tensor, own: Tensor | None = None) -> Tensor:
        """`own` (N,) counts each sample's nodes that enter the statistics; None: all."""
        n, steps, window = *x.shape[:2], self.window
        size = steps // window
        folds = is_plain(self.conv, nn.Conv1d, stride=(window,), kernel_size=(window,))
        if not folds or torch.compiler.is_compiling():  # a graph serves any T, any rest of it
            y = self.conv(x.mT).mT
            return F.elu(self._normalized(y, own)).contiguous()
        # Kernel = stride: one matrix product over whole windows.
        whole = x[:, : size * window].reshape(n * size, window * x.shape[2])  # NL WD
        y = F.linear(whole, self.conv.weight.permute(0, 2, 1).flatten(1), self.conv.bias)
        return F.elu(self._normalized(y.view(n, size, x.shape[2]), own))

    def _normalized(self, y: Tensor, own: Tensor | None) -> Tensor:
        if own is None or not self.training:
            normal: Tensor = self.norm(y.flatten(0, 1)).view_as(y)
            return normal
        counted = torch.arange(y.shape[1], device=y.device) < own[:, None]
        rows = self.norm(y[counted])
        padded: Tensor = rows.new_zeros(y.shape).index_put((counted,), rows)
        return padded


def quarter(c: int, name: str) -> int:
    """The default of a width, `c // 4`, which must not be zero."""
    if c < 4:
        raise ValueError(f"c={c} leaves {name}=c // 4 no channel; give {name}=1, or c=4 or more")
    return c // 4


register(
    "pyraformer_cscm",
    CSCM,
    layout="sequence",
    family="temporal",
    example={"c": 32, "windows": (3, 2)},
    upstream={"conv_layers.*.downConv": "levels.*.conv", "conv_layers": "levels"},
)
