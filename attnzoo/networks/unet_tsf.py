"""UnetTSF: a linear U-net over a series and its pooled copies, which forecasts its next values.

When: a fast forecaster for long horizons is wanted, or a linear baseline for one.
Paper: UnetTSF: A Better Performance Linear Complexity Time Series Prediction Model, Chu, Xiao,
    Yuan, 2024, arXiv 2401.03001.
Code: lichuustc/UnetTSF @76cfd98, `models/Time_Unet.py` class `Model`, `layers/RevIN.py`.
Math: with the mean m and deviation s of each variable over time, both detached,
    z = (x - m) / s * w + b; x_0 = z, x_{i+1} = pool(x_i); e_i = A_i x_i from L_i steps to P_i;
    y = e_{n-1}, then from coarse to fine y = B_i [e_i, y]; forecast
    (y - b) / (w + eps^2) * s + m, eps = 1e-5. Lengths of both sides shrink alike:
    n -> floor((n + 2 pool_padding - pool_kernel) / pool_stride) + 1. All of it but m and s is one
    affine map of z, which `fold` computes.
Shapes: (..., length, c) -> (..., horizon, c).
Differs: theirs also pools after the last stage and drops the result, which fails on short series;
    left out, as are norms that never act. A stage of no steps builds there and is refused here.
Cost: L_i, P_i the lengths, m = c if individual else 1: parameters m (sum_i (L_i + 1) P_i +
    sum_{i < n-1} (P_i + P_{i+1} + 1) P_i) + 2 c; MACs c (sum_i L_i P_i +
    sum_{i < n-1} (P_i + P_{i+1}) P_i).
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import leading
from ..ops.precision import upcast
from ..ops.stop_gradient import stop_gradient
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Count, Depth, NonNegative, Width

EPS = 1e-5


def statistics(series: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation over time of (B, c, T), both (B, c, 1) and without a gradient."""
    fixed = stop_gradient(series)
    mean = fixed.mean(2, keepdim=True)
    return mean, ((fixed - mean).square().mean(2, keepdim=True) + EPS).sqrt()


class PerVariable(nn.ModuleList):
    """A linear layer over time for each variable: (B, c, before) to (B, c, after)."""

    def __init__(self, before: int, after: int, variables: int) -> None:
        super().__init__(nn.Linear(before, after) for _ in range(variables))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(v) for layer, v in zip(self, x.unbind(1), strict=True)], 1)


class UnetTSF(nn.Module):
    """Forecasts `horizon` steps of (..., length, c), each variable by itself.

    Args:
        c: variables.
        length: steps of the input.
        horizon: steps of the forecast.
        stages: resolutions of the U, each pooled from the one before.
        pool_kernel: steps that a pooled step averages.
        pool_stride: steps between pooled ones.
        pool_padding: zeros on both sides of what is pooled, half of pool_kernel at most.
        individual: whether each variable has layers of its own.

    Raises:
        ValueError: a stage would have no step, or x has other steps than `length`.
    """

    def __init__(
        self,
        c: Width,
        *,
        length: Count,
        horizon: Count,
        stages: Depth = 4,
        pool_kernel: Count = 3,
        pool_stride: Count = 2,
        pool_padding: NonNegative = 0,
        individual: bool = False,
    ) -> None:
        super().__init__()
        self.c, self.length, self.horizon, self.individual = c, length, horizon, individual
        self.pool = (pool_kernel, pool_stride, pool_padding)
        before = _lengths("length", length, stages, self.pool)
        after = _lengths("horizon", horizon, stages, self.pool)
        self.affine_weight = nn.Parameter(torch.ones(c))
        self.affine_bias = nn.Parameter(torch.zeros(c))
        self.down = nn.ModuleList(map(self._layer, before, after))
        joined = [(fine + coarse, fine) for fine, coarse in pairwise(after)]
        self.up = nn.ModuleList(self._layer(*sizes) for sizes in reversed(joined))

    def forward(self, x: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        check.sequence(x, self.c, self.affine_weight)
        if x.shape[-2] != self.length:
            raise ValueError(
                f"x has {x.shape[-2]} steps (axis -2 of shape {tuple(x.shape)}); the network was "
                f"built for length={self.length}, one weight a step: pass the last {self.length}"
            )
        if key_padding_mask is not None:
            raise ValueError(
                f"key_padding_mask: the network maps all {self.length} steps by one weight each "
                "and cannot leave any out; fill the missing steps, or build with a smaller length"
            )
        series = upcast(leading.fold(x)).mT  # B c length
        mean, deviation = statistics(series)
        weight, bias = self.affine_weight[:, None], self.affine_bias[:, None]
        z = (series - mean) / deviation * weight + bias
        y = (upcast(self._affine(z.to(x.dtype))) - bias) / (weight + EPS**2) * deviation + mean
        return leading.unfold(y.to(x.dtype).mT, x)

    @torch.no_grad()
    def fold(self) -> "UnetTSF":
        """The same forecasts by a network of one stage, a single linear map, for inference."""
        folded = UnetTSF(
            self.c,
            length=self.length,
            horizon=self.horizon,
            stages=1,
            individual=self.individual,
        ).to(self.affine_weight)
        steps = torch.eye(self.length).to(self.affine_weight)[:, None].expand(-1, self.c, -1)
        bias = self._affine(torch.zeros_like(steps[:1]))[0]  # c horizon
        weight = (self._affine(steps) - bias).permute(1, 2, 0)  # c horizon length
        only = folded.down[0]
        layers = only.children() if isinstance(only, PerVariable) else [only]
        for i, layer in enumerate(cast(Iterable[nn.Linear], layers)):
            layer.weight.copy_(weight[i])
            layer.bias.copy_(bias[i])
        folded.affine_weight.copy_(self.affine_weight)
        folded.affine_bias.copy_(self.affine_bias)
        return folded.train(self.training)

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample, all variables."""
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
        products = sum(layer.weight.numel() for layer in layers)
        return products if self.individual else self.c * products

    def _layer(self, before: int, after: int) -> nn.Module:
        if self.individual:
            return PerVariable(before, after, self.c)
        return nn.Linear(before, after)

    def _affine(self, z: Tensor) -> Tensor:
        """The U, (B, c, length) to (B, c, horizon)."""
        sides = []
        for i, layer in enumerate(self.down):
            z = z if i == 0 else F.avg_pool1d(z, *self.pool)
            sides.append(layer(z))
        y: Tensor = sides.pop()
        for layer in self.up:
            y = layer(torch.cat((sides.pop(), y), 2))
        return y

    def extra_repr(self) -> str:
        return f"c={self.c}, length={self.length}, horizon={self.horizon}, pool={self.pool}"


def _lengths(name: str, steps: int, stages: int, pool: tuple[int, int, int]) -> list[int]:
    """Steps of each stage, from `steps` down."""
    kernel, stride, padding = pool
    if 2 * padding > kernel:
        raise ValueError(
            f"pool_padding={padding} must be at most half of pool_kernel={kernel}: {kernel // 2}"
        )
    lengths = [steps]
    while len(lengths) < stages:
        room = lengths[-1] + 2 * padding - kernel
        if room < 0:
            raise ValueError(
                f"{name}={steps} has no step left at stage {len(lengths) + 1} of stages={stages}: "
                f"its stages have {', '.join(map(str, lengths))} steps and pool_kernel={kernel}; "
                f"take stages={len(lengths)} or fewer, or a larger {name}"
            )
        lengths.append(room // stride + 1)
    return lengths


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    return {"x": random(size.batch, config["length"], config["c"])}


register(
    "unet_tsf",
    UnetTSF,
    layout="sequence",
    family="network",
    example={"c": 2, "length": 12, "horizon": 7, "stages": 2},
    inputs=inputs,
    upstream={
        "revin_layer.affine_weight": "affine_weight",
        "revin_layer.affine_bias": "affine_bias",
        "down_blocks.*.Linear_channel": "down.*",
        "up_blocks.*.Linear_channel": "up.*",
        "down_blocks.*.ln": None,
        "up_blocks.*.ln": None,
    },
    limits={
        "gradcheck": "it runs, but the mean and deviation of x count as constants, by the authors' "
        "design, which makes the gradient of x no derivative"
    },
)
