"""Deformable interactive attention: the mean and the maximum over channels gate each other.

When: a gate of places is wanted for a few dozen parameters, however many channels there are.
Paper: An Adaptive Dual-Supervised Cross-Deep Dependency Network for Pixel-Wise Classification
    (ADCD-Net, its DIA module), IEEE TGRS 2025, document 10841446.
Code: ChenC1027/ADCD-Net @bb9440c, `DIA_Module.py`, `DeformableAttention` (the default `scales`) and
    `DeformableAttention2` (`scales=(0.1, 0.4)`).
Math: a = downavg(mean_C x), b = downmax(max_C x), 3x3 convolutions of stride 2;
    z = [sigmoid(d_conv(a)) * b, sigmoid(d_conv1(b)) * a]; y = relu(x * up2(sigmoid(conv(z)))).
    `modulated=False` has z = [b, a]. In the backward pass, the gradient of a through d_conv is
    multiplied by scales[0], that of b through d_conv1 by scales[1]; the rest is unchanged.
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the authors apply the factors by full backward hooks, which torch.export drops silently and
    torch.compile(fullgraph=True) and torch.func reject; here a function before the two convolutions
    applies them, exactly, in all of these. An exported program keeps the factors of its export. An
    infinite a or b becomes nan. The mask of an image of odd size is cropped to it; the authors'
    code fails there, or enlarges a 1x1 image to 2x2. Their constructor's default is
    modulated=False. Despite the name, nothing is sampled at an offset.
Cost: with n = ceil(H / 2) ceil(W / 2), parameters 59, MACs 54 n; not modulated 39 and 36 n.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd import custom_gradient, dia
from ..ops.maximum import largest
from ..ops.stop_gradient import may_be_derived, stop_gradient
from ..registry import InputSize, register
from ..validation import check, types
from ..validation.types import Width


def pool(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C, H, W) itself, and its mean and maximum over the channels: (B, 1, H, W)."""
    return x, x.mean(1, keepdim=True), largest(x, 1, keepdim=True)


def gate(x: Tensor, mask: Tensor) -> Tensor:
    """The ReLU of x (B, C, H, W) times its mask (B, 1, H, W), whose values are positive."""
    return x.relu() * mask  # unlike relu's, the product's gradient allows `+=` on it


pool = custom_gradient(pool, dia.pool)
gate = custom_gradient(gate, dia.gate)


class DIA(nn.Module):
    """Deformable interactive attention on (B, C, H, W).

    Args:
        c: channels in and out; no parameter depends on it.
        modulated: whether the mean and the maximum gate each other.
        scales: factors of the gradients through d_conv and d_conv1 to their inputs; 1 gives the
            derivative. The attribute `scales` can be assigned at any time: later calls, compiled
            ones too, use the new factors. No effect with `modulated=False`.
    """

    def __init__(
        self, c: Width, *, modulated: bool = True, scales: tuple[float, float] = (0.4, 0.1)
    ) -> None:
        super().__init__()
        self.c, self.modulated = c, modulated
        self.scales = scales
        self.conv = nn.Conv2d(2, 1, 3, padding=1)
        self.downavg = nn.Conv2d(1, 1, 3, stride=2, padding=1)
        self.downmax = nn.Conv2d(1, 1, 3, stride=2, padding=1)
        if modulated:
            self.d_conv = nn.Conv2d(1, 1, 3, padding=1)
            self.d_conv1 = nn.Conv2d(1, 1, 3, padding=1)
            nn.init.zeros_(self.d_conv.weight)
            nn.init.zeros_(self.d_conv1.weight)

    @property
    def scales(self) -> tuple[float, float]:
        """Factors of the gradients through d_conv and d_conv1 to their inputs."""
        return self._scales

    @scales.setter
    def scales(self, value: tuple[float, float]) -> None:
        self._scales: tuple[float, float] = types.fit("scales", value, tuple[float, float])

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.conv)
        x, average, maximum = pool(x)
        a, b = self.downavg(average), self.downmax(maximum)  # B 1 ceil(H/2) ceil(W/2)
        z = [b, a]
        if self.modulated:
            of_a = self.d_conv(_scale_gradient(a, self.scales[0])).sigmoid()
            of_b = self.d_conv1(_scale_gradient(b, self.scales[1])).sigmoid()
            z = [of_a * b, of_b * a]
        mask = self.conv(torch.cat(z, 1)).sigmoid()
        return gate(x, _doubled(mask, x.shape[2], x.shape[3]))

    def macs(self, size: InputSize) -> int:
        pixels = -(-size.height // 2) * -(-size.width // 2)  # each half, rounded up
        return 9 * (6 if self.modulated else 4) * pixels

    def extra_repr(self) -> str:
        return f"c={self.c}, modulated={self.modulated}, scales={self.scales}"


def _doubled(mask: Tensor, height: int, width: int) -> Tensor:
    """The mask at twice its size, nearest neighbor, cropped to the image.

    When compiled by indices: cropping an interpolated map would specialize the graph to odd or even
    sizes.
    """
    if not torch.compiler.is_compiling():
        return F.interpolate(mask, scale_factor=2.0)[..., :height, :width]
    rows = torch.arange(height, device=mask.device) // 2
    columns = torch.arange(width, device=mask.device) // 2
    return mask.index_select(2, rows).index_select(3, columns)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, its gradient multiplied by `factor`: x.detach() + factor * (x - x.detach()).

    Ordinary operations, and exact: the difference is zero. A custom autograd Function would lose
    the factor in torch.export as module hooks do.
    """
    return torch.lerp(stop_gradient(x), x, factor) if may_be_derived(x) else x


register(
    "dia",
    DIA,
    layout="image",
    family="spatial",
    example={"c": 64},
    upstream={"conv": "conv"},  # the authors' names are the same
    limits={
        "gradcheck": "by the authors' design, scales other than 1 make the gradient differ from "
        "the derivative; with scales=(1, 1) both derivatives are checked"
    },
)
