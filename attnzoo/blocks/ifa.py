"""IFA: nearest-neighbor upsampling by 2, then an MLP that also gets the position in the pixel.

When: maps are to be doubled by a small network that knows the position within each pixel.
Paper: Learning Implicit Feature Alignment Function for Semantic Segmentation, Hu et al., ECCV 2022,
    arXiv 2206.08655, in the reduced form of FeatUp, Fu et al., ICLR 2024, arXiv 2403.10516.
Code: mhamilton723/FeatUp @6b5a6c0e, `featup/upsamplers.py` (`IFA`).
Math: y = W2 leaky_relu(BN(W1 [nearest(x), s, d] + b1)) + b2; s: 40 sines and 40 cosines of the
    position, those of `implicit` with 20 frequencies; d: row and column of the source's pixel,
    i h / (h - 1), less the pixel's own, i h / (2 h - 1).
Shapes: source (B, C, h, w) -> (B, C, 2 h, 2 w); a guidance is accepted but not used.
Differs: the source need not be square, as it must be in theirs: columns use w. Sines and cosines
    are computed in float64; theirs, in float32, are off by up to 7e-4. Not the paper's module,
    which uses four levels of a pyramid. W1's part for the source runs before upsampling: the same
    sums in another order. Their `num_scales` fails at all values but 20.
Cost: parameters (c + 82) c + c + 2 c + c^2 + c; MACs 4 h w ((c + 82) c + c^2), of which 3 h w c^2
    are saved here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.folding import is_plain, is_pointwise
from ..ops.fourier import fourier_grid, line
from ..ops.memory_format import match_memory_format
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Width
from .carafe import inputs


class IFA(nn.Module):
    """Upsampling of `source` (B, C, h, w) by 2.

    Args:
        c: channels in and out.
    """

    def __init__(self, c: Width) -> None:
        super().__init__()
        self.c = c
        self.mlp = nn.Sequential(
            nn.Conv2d(c + 82, c, 1), nn.BatchNorm2d(c), nn.LeakyReLU(), nn.Conv2d(c, c, 1)
        )

    def forward(self, source: Tensor, guidance: Tensor | None = None) -> Tensor:
        check.image(source, self.c, self, name="source")
        b, _, h, w = source.shape
        check.batch_norm(self.mlp[1], 4 * b * h * w, source, name="source")
        place = positions(h, w, source.device).to(source.dtype).expand(b, 82, 2 * h, 2 * w)
        if is_plain(self.mlp, nn.Sequential) and is_pointwise(self.mlp[0]):
            y = self.mlp[3](self.mlp[2](self.mlp[1](self._first(self.mlp[0], source, place))))
        else:
            y = self.mlp(torch.cat((_doubled(source), place), 1))
        return match_memory_format(y, source)

    def _first(self, conv: nn.Conv2d, source: Tensor, place: Tensor) -> Tensor:
        """The first convolution of the doubled source and the positions."""
        of_source, of_place = conv.weight[:, : self.c], conv.weight[:, self.c :]
        return _doubled(F.conv2d(source, of_source)) + F.conv2d(place[:1], of_place, conv.bias)

    def macs(self, size: InputSize) -> int:
        return 4 * size.height * size.width * 2 * (self.c + 41) * self.c

    def extra_repr(self) -> str:
        return f"c={self.c}"


def positions(h: int, w: int, device: torch.device) -> Tensor:
    """Sines and cosines of each fine pixel's position, and its offset in the source's pixel."""
    rows, columns = (
        line(0, n, n, device).repeat_interleave(2) - line(0, n, 2 * n, device) for n in (h, w)
    )
    size = (2 * h, 2 * w)
    apart = torch.stack((rows[:, None].expand(size), columns.expand(size)))
    return torch.cat((fourier_grid(*size, 20, device), apart))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


register(
    "ifa",
    IFA,
    layout="upsampler",
    family="upsampler",
    example={"c": 16},
    inputs=inputs,
)
