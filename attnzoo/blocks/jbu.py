"""Joint bilateral upsampling with a learned range kernel, to the size of a guiding image.

When: coarse features should follow the edges of an image, to whose size they are brought in one
    step.
Paper: FeatUp: A Model-Agnostic Framework for Features at Any Resolution, Fu, Hamilton, Brandt,
    Feldmann, Zhang, Freeman, ICLR 2024, arXiv 2403.10516.
Code: mhamilton723/FeatUp @6b5a6c0e, `featup/upsamplers.py` (`JBULearnedRange`), the same in
    likyoo/SegEarth-OV @3e22a969, `simfeatup_dev/upsamplers.py`.
Math: p = range_proj(G); over the d x d window of each pixel, d = 2 radius + 1 and borders
    reflected, R_q = softmax_q(t p_q . p), t = clip(exp(range_temp), 1e-4, 1e4);
    S_q = exp(-|q|^2 / (2 sigma_spatial^2)), q in [-1, 1]^2; K = R S / max(sum_q R S, 1e-7);
    K += 0.1 fixup_proj([K, G]); out = sum_q K_q bicubic(source)_q.
Shapes: source (B, C, h, w), guidance (B, g, H, W) -> (B, C, H, W), for any H / h; H and W above
    `radius`.
Differs: the authors' `feat_dim` and `scale` have no effect and are left out; `c` is the source's
    channels. Their code fails in half precision; here the kernel and the sums are then float32. The
    filters' gradient of their CUDA op has 7 of 49 taps; here, as on their CPU, it has all.
Cost: with P = d^2, k = key_dim and g = guidance, parameters 2 + g k + k + k^2 + k + (g + P) P + P
    + P^2 + P; MACs H W (g k + k^2 + k P + (g + 2 P) P + c P); `macs` assumes H W = 4 h w.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd.windows import window_dots, window_sum
from ..ops.memory_format import match_memory_format
from ..ops.precision import autocast_disabled, upcast
from ..ops.weight_decay import exempt
from ..registry import Inputs, InputSize, MakeInputs, Random, register
from ..validation import check
from ..validation.types import Count, Rate, Width


def adaptive_conv(x: Tensor, filters: Tensor) -> Tensor:
    """Each pixel's own filter, shared by all channels: sum_ij filters[h, w, i, j] x[h + i, w + j].

    Temporary tensors have the size of the arguments; the k x k windows are not unfolded.

    Args:
        x: (B, C, H + k - 1, W + k - 1), padded by the caller.
        filters: (B, H, W, k, k), on the device and of the dtype of `x`.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: shapes that do not match, or different devices.
        TypeError: different dtypes, or an argument that is not a dense floating-point tensor.
    """
    check.image(x)
    _check_filters(filters, x)
    weights = upcast(filters).permute(0, 3, 4, 1, 2)[:, None, :, :, None]  # B 1 k k 1 H W
    with autocast_disabled(x):
        return window_sum(upcast(x)[:, None], weights)[:, 0, :, 0].to(x.dtype)


def joint_kernel(p: Tensor, range_temp: Tensor, sigma_spatial: Tensor, radius: int) -> Tensor:
    """Normalized K of the projected guidance: (B, k, H, W) -> (B, d d, H, W)."""
    d = 2 * radius + 1
    with autocast_disabled(p):
        energies = window_dots(p[:, None, :, None], _reflected(p, radius)[:, None], d)
    temperature = upcast(range_temp).exp().clamp(1e-4, 1e4)
    u = torch.linspace(-1, 1, d, dtype=p.dtype, device=p.device).square()
    distances = (u[:, None] + u).flatten()[:, None, None]  # d d, 1, 1
    spatial = (-distances / (2 * upcast(sigma_spatial).square())).exp()
    kernel = (temperature * energies[:, 0, :, :, 0].flatten(1, 2)).softmax(1) * spatial
    return kernel / kernel.sum(1, keepdim=True).clamp_min(1e-7)


class JBU(nn.Module):
    """One joint bilateral step of `source` (B, C, h, w) to the size of `guidance` (B, g, H, W).

    Args:
        c: channels in and out.
        guidance: channels of the guidance.
        key_dim: width of the projection in which pixels of the guidance are compared.
        radius: the window is 2 radius + 1 pixels wide.
        dropout: rate at which channels are dropped inside both projections.
    """

    def __init__(
        self,
        c: Width,
        *,
        guidance: Width = 3,
        key_dim: Width = 32,
        radius: Count = 3,
        dropout: Rate = 0.1,
    ) -> None:
        super().__init__()
        self.c, self.guidance, self.key_dim, self.radius = c, guidance, key_dim, radius
        taps = (2 * radius + 1) ** 2
        self.range_temp = nn.Parameter(torch.zeros(1))
        self.sigma_spatial = nn.Parameter(torch.ones(1))
        exempt(self, "range_temp", "sigma_spatial")
        self.range_proj = _projection(guidance, key_dim, dropout)
        self.fixup_proj = _projection(taps + guidance, taps, dropout)

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        self._check(source, guidance)
        d = 2 * self.radius + 1
        p = upcast(self.range_proj(guidance))
        kernel = joint_kernel(p, self.range_temp, self.sigma_spatial, self.radius)
        seen = torch.cat((kernel.to(guidance.dtype), guidance), 1)
        kernel = kernel + 0.1 * self.fixup_proj(seen)  # B dd H W
        resized = upcast(F.interpolate(source, guidance.shape[2:], mode="bicubic"))
        filters = kernel.unflatten(1, (d, d)).permute(0, 3, 4, 1, 2)  # B H W d d
        y = adaptive_conv(_reflected(resized, self.radius), filters.to(resized.dtype))
        return match_memory_format(y.to(source.dtype), source)

    def _check(self, source: Tensor, guidance: Tensor) -> None:
        check.image(source, self.c, self, name="source")
        check.image(guidance, self.guidance, self, name="guidance")
        check.same_batch(source=source, guidance=guidance)
        if guidance.shape[2] <= self.radius or guidance.shape[3] <= self.radius:
            least = self.radius + 1
            raise ValueError(
                f"guidance has shape {tuple(guidance.shape)}; to reflect radius={self.radius} "
                f"pixels at its borders it needs at least {least} x {least}: take a larger "
                "guidance or a smaller radius"
            )

    def macs(self, size: InputSize) -> int:
        """With a guidance of twice the source's size."""
        g, k, taps = self.guidance, self.key_dim, (2 * self.radius + 1) ** 2
        pixel = g * k + k * k + k * taps + (g + 2 * taps) * taps + self.c * taps
        return 4 * size.height * size.width * pixel

    def extra_repr(self) -> str:
        return f"c={self.c}, radius={self.radius}"


def _projection(c: int, c_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c, c_out, 1), nn.GELU(), nn.Dropout2d(dropout), nn.Conv2d(c_out, c_out, 1)
    )


def _reflected(x: Tensor, radius: int) -> Tensor:
    return F.pad(x, (radius,) * 4, mode="reflect")


def _check_filters(filters: Tensor, x: Tensor) -> None:
    check.dense("filters", filters, "(B, H, W, k, k)")
    shape, (b, _, h, w) = tuple(filters.shape), x.shape
    if filters.ndim != 5 or shape[3] != shape[4] or 0 in shape[1:]:
        raise ValueError(
            f"filters has shape {shape}; it must be (B, H, W, k, k), with no empty axis"
        )
    wanted = (shape[0], shape[1] + shape[3] - 1, shape[2] + shape[3] - 1)
    if wanted != (b, h, w):
        raise ValueError(
            f"x has shape {tuple(x.shape)}; for filters of shape {shape} it must be "
            f"{(wanted[0], x.shape[1], *wanted[1:])}: pad it by k - 1 = {shape[3] - 1} in total"
        )
    if filters.device != x.device:
        raise ValueError(
            f"filters is on {filters.device}, x on {x.device}; move one: filters.to(x.device)"
        )
    if filters.dtype != x.dtype:
        raise TypeError(f"filters is {filters.dtype}, x {x.dtype}; cast one: filters.to({x.dtype})")


def guided(scale: int) -> MakeInputs:
    """Example inputs whose guidance has `scale` times the source's height and width."""

    def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
        b, h, w = size.batch, size.height, size.width
        guidance = random(b, config["guidance"], scale * h, scale * w)
        return {"source": random(b, config["c"], h, w), "guidance": guidance}

    return inputs


register(
    "jbu",
    JBU,
    layout="upsampler",
    family="upsampler",
    example={"c": 16, "guidance": 4, "key_dim": 8, "radius": 1, "dropout": 0.0},
    inputs=guided(2),
)
