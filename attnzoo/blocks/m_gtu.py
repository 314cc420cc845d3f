"""Multi-scale gated tanh unit: gated convolutions of several kernel sizes, mixed along time.

When: traffic-like series of fixed length need a convolutional layer with gates and several kernel
    sizes.
Paper: DSTAGNN: Dynamic Spatial-Temporal Aware Graph Neural Network for Traffic Flow Forecasting,
    Lan, Ma, Huang, Wang, Yang, Li, ICML 2022, PMLR 162:11906-11917.
Code: SYLan2019/DSTAGNN @d9b7f1f, `model/DSTAGNN_my.py`, `GTU` and the tail of
    `DSTAGNN_block.forward`; no class of theirs is the whole block.
Math: u_k = W_k * x + b_k, an unpadded convolution to 2 c channels; g_k = tanh(first half) *
    sigmoid(last half); y = relu(x + dropout(M concat_k(pool(g_k)) + m)), k in `kernels`, where
    the concatenation and the matrix M act along time. `residual=False` omits x, as in the first
    block of the authors' network. `gtu_only=True` is y = g_k for one kernel, at every `stride`-th
    step.
Shapes: (..., T, C) -> the same, T = `length`; with `gtu_only` -> (..., (T - k) // stride + 1, C).
Differs: the paper max-pools each unit's steps by 2; the authors build that layer and never call it.
    `pool=None` is their code, `pool=2` the paper (its reference vectors are computed from their
    units, not by their block). The convolutions are not causal, although the authors' variable is
    named so.
Cost: with L = sum_k (T - k + 1) (each // pool), parameters sum_k (2 c^2 k + 2 c) + L T + T; MACs
    sum_k (T - k + 1) 2 c^2 k + c L T for each leading index.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.folding import is_plain
from ..ops.gated_tanh import gated_tanh
from ..ops.leading import fold, unfold
from ..ops.padding import Padding
from ..ops.time_conv import apply_in_time
from ..registry import InputSize, register
from ..validation import check, messages
from ..validation.types import Count, Counts, Rate, Width


class GTU(nn.Module):
    """One gated tanh unit on (N, T, C): tanh(first C channels) * sigmoid(last C) of a convolution.

    Args:
        c: channels in and out.
        kernel: taps in time.
        stride: steps between two outputs.
    """

    def __init__(self, c: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.con2out = nn.Conv1d(c, 2 * c, kernel, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return gated_tanh(apply_in_time(self.con2out, x))


class MGTU(nn.Module):
    """Multi-scale gated tanh unit on (..., T, C).

    With `gtu_only` a `key_padding_mask` (..., T) names the steps to be ignored, True: a sample's
    own outputs come first, then zeros. The whole block takes no mask, since its length is fixed.

    Args:
        c: channels in and out.
        length: T, which fixes the size of the mixing matrix; no effect with `gtu_only`.
        kernels: taps in time of each unit, all different, none longer than `length`.
        pool: window of the max pooling over time after each unit; None for the authors' code,
            2 for the paper.
        residual: whether x is added before the ReLU.
        dropout: rate of the dropout after the mixing matrix.
        gtu_only: only one unit, with the only kernel of `kernels`, and nothing after it.
        stride: steps between two outputs, with `gtu_only`.

    Raises:
        ValueError: a kernel, or its pooling, leaves no step of `length`; or an argument needs
            another value of `gtu_only`.
    """

    def __init__(
        self,
        c: Width,
        *,
        length: Count = 12,
        kernels: Counts = (3, 5, 7),
        pool: Count | None = None,
        residual: bool = True,
        dropout: Rate = 0.05,
        gtu_only: bool = False,
        stride: Count = 1,
    ) -> None:
        super().__init__()
        self.c, self.length, self.kernels = c, length, kernels
        self.pool, self.residual, self.dropout = pool, residual, dropout
        self.gtu_only, self.stride = gtu_only, stride
        self._check_form()
        for k in self.kernels:
            self.add_module(f"gtu{k}", GTU(c, k, stride))
        if not gtu_only:
            self.fcmy = nn.Linear(self._mixed_steps(), length)

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        units = [self.get_submodule(f"gtu{k}") for k in self.kernels]
        check.sequence(x, self.c, units[0])
        self._check_steps(x)
        padded = check.padding_mask(key_padding_mask, x.shape[:-1], x)
        h = fold(x)  # N T C
        if self.gtu_only:
            return unfold(self._unit(units[0], h, padded), like=x)
        if padded is not None:
            raise ValueError(
                "key_padding_mask: the mixing matrix has a weight for each of the "
                f"length={self.length} steps and takes no series of fewer; group samples by their "
                "length, each with a block of that length=, or take gtu_only=True"
            )
        g = torch.cat([self._pooled(unit(h)) for unit in units], dim=1)  # N L C
        y = F.dropout(self._mixed(g), self.dropout, self.training)
        return unfold((h + y if self.residual else y).relu(), like=x)

    def _unit(self, unit: nn.Module, h: Tensor, padded: Tensor | None) -> Tensor:
        """The outputs of one unit; with padding, those of a sample's own steps and then zeros."""
        if padded is None:
            y: Tensor = unit(h)
            return y
        padding = Padding.of(fold(padded, keep=1))
        hidden = padding.hidden[:, self.kernels[0] - 1 :: self.stride, None]
        return unit(padding.pack(h)).masked_fill(hidden, 0)  # type: ignore[no-any-return]

    def _mixed(self, g: Tensor) -> Tensor:
        """(N, L, C) to (N, T, C) by the mixing matrix, without moving the channels."""
        mix = self.fcmy
        if not is_plain(mix, nn.Linear) or mix.bias is None:
            y: Tensor = mix(g.mT).mT
            return y
        return torch.baddbmm(mix.bias[:, None], mix.weight.expand(g.shape[0], -1, -1), g)

    def _pooled(self, g: Tensor) -> Tensor:
        """(N, T, C) to (N, T // pool, C): the largest of every `pool` steps."""
        if self.pool is None:
            return g
        return F.max_pool2d(g.mT.unsqueeze(2), (1, self.pool)).squeeze(2).mT

    def _mixed_steps(self) -> int:
        """The mixing matrix's number of input steps: those of all units, pooled."""
        window = self.pool or 1
        for k in self.kernels:
            if self.length - k + 1 < window:
                pooled = f" and pool={self.pool}" if window > 1 else ""
                raise ValueError(
                    f"kernels={messages.shown(self.kernels)}: k={k}{pooled} leaves no step of "
                    f"length={self.length}; take kernels of at most {self.length - window + 1}, "
                    f"or length={k + window - 1} or more"
                )
        return sum((self.length - k + 1) // window for k in self.kernels)

    def _check_form(self) -> None:
        """Refuse arguments that the whole block, or a single unit, does not have."""
        if len(set(self.kernels)) < len(self.kernels):
            raise ValueError(
                f"kernels={messages.shown(self.kernels)} must all differ: units are named by "
                f"them; take kernels={messages.shown(tuple(dict.fromkeys(self.kernels)))}"
            )
        if not self.gtu_only and self.stride != 1:
            raise ValueError(f"stride={self.stride} needs gtu_only=True; take that, or stride=1")
        if self.gtu_only and len(self.kernels) != 1:
            raise ValueError(
                f"gtu_only=True takes one kernel, not kernels={messages.shown(self.kernels)}; "
                f"take kernels=({self.kernels[0]},)"
            )
        if self.gtu_only and self.pool is not None:
            raise ValueError(
                f"pool={self.pool} is for the whole block; with gtu_only=True take pool=None"
            )

    def _check_steps(self, x: Tensor) -> None:
        steps = x.shape[-2]
        if self.gtu_only and steps < self.kernels[0]:
            raise ValueError(
                f"x has {steps} steps (shape {tuple(x.shape)}), fewer than the kernel of "
                f"{self.kernels[0]}; take at least {self.kernels[0]} steps"
            )
        if not self.gtu_only and steps != self.length:
            raise ValueError(
                f"x has {steps} steps (shape {tuple(x.shape)}); the block was built for "
                f"length={self.length}: build it with length={steps}"
            )

    def macs(self, size: InputSize) -> int:
        steps = size.steps if self.gtu_only else self.length
        taps = sum(((steps - k) // self.stride + 1) * k for k in self.kernels)
        units = 2 * self.c * self.c * taps
        return units if self.gtu_only else units + self.c * self.fcmy.weight.numel()

    def extra_repr(self) -> str:
        if self.gtu_only:
            return f"c={self.c}, gtu_only=True, stride={self.stride}"
        return f"c={self.c}, length={self.length}, pool={self.pool}, residual={self.residual}"


# The other layers of the authors' DSTAGNN_block, whose keys in a checkpoint have the same prefix.
_BESIDE = dict.fromkeys(
    ("pre_conv", "EmbedT", "EmbedS", "TAt", "SAt", "cheb_conv_SAt", "residual_conv", "ln")
)

register(
    "m_gtu",
    MGTU,
    layout="sequence",
    family="temporal",
    example={"c": 32, "length": 12, "dropout": 0.0},
    input_size=InputSize(steps=12),
    inputs=lambda random, at, config: {
        "x": random(at.batch, at.steps if config["gtu_only"] else config["length"], config["c"])
    },
    upstream=(
        {"fcmy.0": "fcmy", **_BESIDE},
        {"fcmy.0": "fcmy", "gtu0": "gtu3", "gtu1": "gtu5", "gtu2": "gtu7"},  # a teaching copy
        {"con2out": "*.con2out"},  # gtu_only
    ),
)
