"""Implicit featurizer: appends sines and cosines of each pixel's position to the channels.

When: a network is to know where each pixel is: it appends position codes and learns nothing.
Paper: FeatUp: A Model-Agnostic Framework for Features at Any Resolution, Fu, Hamilton, Brandt,
    Feldmann, Zhang, Freeman, ICLR 2024, arXiv 2403.10516 (its implicit upsampler's input).
Code: mhamilton723/FeatUp @6b5a6c0e, `featup/upsamplers.py` (`SimpleImplicitFeaturizer`, "simple")
    and `featup/layers.py` (`ImplicitFeaturizer`, "full").
Math: f_j = exp(-2 + 12 j / (n_freqs - 1)); simple: out = [sin(f_j p_a), cos(f_j p_a), x] with p the
    row and the column in [-1, 1], channel 2 j + a. Full: with color_feats p also has the three
    colors, m axes in all, channel m j + a; out = [sin(f_j p_a + b0), cos(f_j p_a + b1)], with
    b of learn_bias, followed by x with color_feats.
Shapes: (B, C, H, W) -> (B, 4 n_freqs + C, H, W); full: 2 m n_freqs channels, + 3 with color_feats.
Differs: sines and cosines are computed in float64 and cast at the end; the authors' float32 is off
    by up to 4e-3 at the highest frequency. `biases` (2, m, n_freqs) is read as (2, n_freqs, m), as
    in their code. `time_feats`, which always fails in theirs, is left out. The coordinate of a
    single pixel is -1, as in theirs.
Cost: no parameters (full with learn_bias: 2 m n_freqs); no products are counted.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ..ops.fourier import fourier_grid, frequencies, line
from ..ops.memory_format import match_memory_format
from ..ops.weight_decay import exempt
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Width


class Implicit(nn.Module):
    """Positional channels for (B, C, H, W).

    Args:
        c: channels in; the full variant with `color_feats` takes 3.
        n_freqs: frequencies; None: 20 for the simple variant, 10 for the full one.
        variant: "simple", of the position, or "full", with colors and biases.
        color_feats: whether the full variant also encodes the three colors, and appends them.
        learn_bias: whether the full variant's sines and cosines have learned phases.

    Raises:
        ValueError: `color_feats` with other than 3 channels; full-variant options with "simple".
    """

    def __init__(
        self,
        c: Width,
        *,
        n_freqs: Count | None = None,
        variant: Literal["simple", "full"] = "simple",
        color_feats: bool = True,
        learn_bias: bool = False,
    ) -> None:
        super().__init__()
        full = variant == "full"
        if not full and (learn_bias or not color_feats):
            option = "learn_bias=True" if learn_bias else "color_feats=False"
            raise ValueError(f"{option} needs variant='full'; variant={variant!r} does not have it")
        if full and color_feats and c != 3:
            raise ValueError(
                f"c={c} must be 3, the colors, with color_feats=True; or pass color_feats=False"
            )
        self.c, self.variant, self.color_feats = c, variant, color_feats
        self.n_freqs = n_freqs or (10 if full else 20)
        axes = 2 + 3 * color_feats
        self.biases = nn.Parameter(torch.randn(2, axes, self.n_freqs)) if learn_bias else None
        if learn_bias:
            exempt(self, "biases")

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.biases)
        b, _, h, w = x.shape
        if self.variant == "simple":
            waves = fourier_grid(h, w, self.n_freqs, x.device).expand(b, -1, h, w)
        else:
            waves = self._waves(x)
        y = torch.cat((waves.to(x.dtype), x if self.color_feats else x[:, :0]), 1)
        return match_memory_format(y, x)

    def _waves(self, x: Tensor) -> Tensor:
        """Sines and cosines of positions and colors: B (2 n m) H W."""
        b, _, h, w = x.shape
        rows, columns = line(-1, 1, h, x.device), line(-1, 1, w, x.device)
        grid = torch.stack((rows[:, None].expand(h, w), columns.expand(h, w))).expand(b, 2, h, w)
        p = torch.cat((grid, x.to(grid.dtype)), 1) if self.color_feats else grid
        f = frequencies(self.n_freqs, x.device)
        angles = f[:, None, None, None] * p[:, None]  # B n m H W
        sines = cosines = angles
        if self.biases is not None:
            phases = self.biases.reshape(2, self.n_freqs, -1, 1, 1)
            sines, cosines = angles + phases[0], angles + phases[1]
        return torch.cat((sines.sin(), cosines.cos()), 1).flatten(1, 2)

    def macs(self, size: InputSize) -> int:
        return 0

    def extra_repr(self) -> str:
        return f"c={self.c}, n_freqs={self.n_freqs}, variant={self.variant!r}"


register("implicit", Implicit, layout="image", family="upsampler", example={"c": 64})
