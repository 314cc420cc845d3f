"""Dilated inception: causal temporal convolutions of several kernel sizes, side by side.

When: a series has patterns of several lengths and convolutions are preferred to attention.
Paper: Connecting the Dots: Multivariate Time Series Forecasting with Graph Neural Networks, Wu,
    Pan, Long, Jiang, Chang, Zhang, KDD 2020, arXiv 2005.11650.
Code: nnzhan/MTGNN @f811746, `layer.py`, `dilated_inception`; the gated pair is the product in
    `net.py`, `gtnet.forward`.
Math: y_t = concat_k(b_k + sum_{i < k} W_k[i] x_{t - (k - 1 - i) d}) over k in `kernels`, d =
    `dilation`; each branch has c_out / len(kernels) channels. With `gated=True`,
    y = tanh(filter(x)) * sigmoid(gate(x)) of two such modules. Every branch reads only steps up
    to t.
Shapes: (..., T, C) -> (..., T, c_out) with `padding="causal"`, which puts r = (max(kernels) - 1) d
    zeros before the first step; -> (..., T - r, c_out) with "valid", the authors' form.
Differs: paper and code agree. The authors pad the network's raw input once and no layer of it, so
    their module is "valid"; "causal" equals it on a padded input. A `c_out` that the branches do
    not divide loses channels in their code and raises here; their largest kernel must come last,
    ours need not. If few products are wasted by it, the branches are computed as one convolution
    with zeros before the shorter kernels: an infinite x that only the largest kernel reads then
    makes every branch nan.
Cost: with n = len(kernels), K = sum(kernels), w = c_out / n, T' steps out, parameters
    K c w + c_out; MACs T' c w K, without the steps that the authors' shorter kernels compute and
    discard. As one convolution T' c c_out max(kernels) run. All twice if gated.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.folding import is_plain
from ..ops.gated_tanh import gated_tanh
from ..ops.leading import fold, unfold
from ..ops.padding import Padding
from ..ops.time_conv import time_conv
from ..registry import InputSize, register
from ..validation import check, messages
from ..validation.types import Count, Counts, Width

# Products with padding zeros, per step, up to which one convolution measured faster than several.
_WASTE = 65_536


class DilatedInception(nn.Module):
    """Dilated inception on (..., T, C).

    In a batch of series of different lengths `key_padding_mask` (..., T) names the steps to be
    ignored, True; their outputs are zero. With `padding="valid"` a sample's own outputs come first.

    Args:
        c: channels in.
        c_out: channels out, a multiple of `len(kernels)`; None for `c`.
        kernels: each branch's taps in time, in the order of the output's channels.
        dilation: steps between two taps.
        gated: tanh of one inception times the sigmoid of another.
        padding: "causal" keeps T by zeros before the first step; "valid" drops the first steps,
            which the largest kernel cannot cover.

    Raises:
        ValueError: the number of kernels does not divide `c_out`.
    """

    def __init__(
        self,
        c: Width,
        *,
        c_out: Width | None = None,
        kernels: Counts = (2, 3, 6, 7),
        dilation: Count = 1,
        gated: bool = False,
        padding: Literal["causal", "valid"] = "causal",
    ) -> None:
        super().__init__()
        self.c, self.c_out = c, c if c_out is None else c_out
        self.kernels, self.dilation = kernels, dilation
        self.gated, self.padding = gated, padding
        width = self._width()
        self.as_one = _as_one(c, width, self.kernels)

        def branches() -> nn.ModuleList:
            return nn.ModuleList(nn.Conv1d(c, width, k, dilation=dilation) for k in kernels)

        if gated:
            self.filter_conv = nn.ModuleDict({"tconv": branches()})
            self.gate_conv = nn.ModuleDict({"tconv": branches()})
        else:
            self.tconv = branches()

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        check.sequence(x, self.c, self)
        self._check_steps(x)
        padded = check.padding_mask(key_padding_mask, x.shape[:-1], x)
        if padded is None:
            return unfold(self._convolved(fold(x)), like=x)
        padding = Padding.of(fold(padded, keep=1))
        y = self._convolved(padding.pack(fold(x)))
        if self.padding == "causal":
            return unfold(padding.unpack(y), like=x)
        hidden = padding.hidden[:, self.reach :, None]  # an output ends at its last step
        return unfold(y.masked_fill(hidden, 0), like=x)

    def _convolved(self, h: Tensor) -> Tensor:
        """(N, T, C) to (N, T, c_out), or with padding="valid" to fewer steps."""
        dilation = self.dilation
        pair = (self.filter_conv, self.gate_conv) if self.gated else ()
        layers = [m for convs in pair for m in convs["tconv"].children()] or list(self.tconv)
        plain = [m for m in layers if isinstance(m, nn.Conv1d) and is_plain(m, nn.Conv1d)]
        folds = len(plain) == len(layers) and all(m.bias is not None for m in plain)
        if self.padding == "causal":
            if folds and not torch.compiler.is_compiling():
                dilation = min(dilation, h.shape[1])  # taps beyond all of T see zeros alike
            h = F.pad(h, (0, 0, (max(self.kernels) - 1) * dilation, 0))
        if folds:
            u = (self._joined if self.as_one else self._apart)(h, plain, dilation)
        else:
            parts = zip(layers, self._parts(h, dilation), strict=True)
            u = torch.cat([layer(part.mT).mT for layer, part in parts], -1)
        return gated_tanh(u) if self.gated else u

    def _joined(self, h: Tensor, convs: list[nn.Conv1d], dilation: int) -> Tensor:
        """All branches as one convolution: shorter kernels begin with zeros."""
        widest = max(self.kernels)
        weight = torch.cat([F.pad(m.weight, (widest - m.kernel_size[0], 0)) for m in convs])
        bias = torch.cat([m.bias for m in convs if m.bias is not None])
        return time_conv(h, weight, bias, dilation=dilation)

    def _apart(self, h: Tensor, convs: list[nn.Conv1d], dilation: int) -> Tensor:
        """One convolution a branch."""
        parts = zip(convs, self._parts(h, dilation), strict=True)
        return torch.cat([time_conv(p, m.weight, m.bias, dilation=dilation) for m, p in parts], -1)

    def _parts(self, h: Tensor, dilation: int) -> list[Tensor]:
        """What each branch convolves, from the first step that it needs on."""
        kernels = self.kernels * (2 if self.gated else 1)
        return [h[:, (max(kernels) - kernel) * dilation :] for kernel in kernels]

    @property
    def reach(self) -> int:
        """How many earlier steps an output step depends on."""
        return (max(self.kernels) - 1) * self.dilation

    def _width(self) -> int:
        """Channels of a branch."""
        count = len(self.kernels)
        if self.c_out % count:
            below = self.c_out // count * count
            nearest = f"{below} and {below + count}" if below else f"{count}"
            raise ValueError(
                f"c_out={self.c_out} must be a multiple of the {count} branches of "
                f"kernels={messages.shown(self.kernels)}; nearest: {nearest} "
                f"(c_out=None takes c={self.c})"
            )
        return self.c_out // count

    def _check_steps(self, x: Tensor) -> None:
        if self.padding == "valid" and x.shape[-2] <= self.reach:
            raise ValueError(
                f"x has {x.shape[-2]} steps (shape {tuple(x.shape)}); with padding='valid', "
                f"kernels={messages.shown(self.kernels)} and dilation={self.dilation} it needs "
                f"at least {self.reach + 1}: take a longer series or padding='causal'"
            )

    def macs(self, size: InputSize) -> int:
        steps = size.steps - (self.reach if self.padding == "valid" else 0)
        return steps * sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Conv1d))

    def extra_repr(self) -> str:
        return (
            f"c={self.c}, c_out={self.c_out}, kernels={self.kernels}, dilation={self.dilation}, "
            f"gated={self.gated}, padding={self.padding!r}"
        )


def _as_one(c: int, width: int, kernels: tuple[int, ...]) -> bool:
    """Whether one convolution for all branches wastes few enough products on zeros."""
    return c * width * (max(kernels) * len(kernels) - sum(kernels)) <= _WASTE


# Other layers next to a gated pair in MTGNN's network (for networks of several layers, pass only
# the keys of one layer), and in a layer of PyTorch Geometric Temporal.
_GTNET = dict.fromkeys((
    "start_conv", "residual_convs", "skip_convs", "gconv1", "gconv2", "norm",
    "skip0", "skipE", "end_conv_1", "end_conv_2", "gc",
))  # fmt: skip
_TEMPORAL = dict.fromkeys(
    ("_residual_conv", "_skip_conv", "_normalization", "_mixprop_conv1", "_mixprop_conv2")
)

register(
    "dilated_inception",
    DilatedInception,
    layout="sequence",
    family="temporal",
    example={"c": 32},
    upstream=(
        *(
            {f"filter_convs.{i}": "filter_conv", f"gate_convs.{i}": "gate_conv", **_GTNET}
            for i in range(5)
        ),
        {"_time_conv": "tconv"},
        {
            "_filter_conv._time_conv": "filter_conv.tconv",
            "_gate_conv._time_conv": "gate_conv.tconv",
            **_TEMPORAL,
        },
    ),
)
