"""Attentional feature fusion: mixes two maps by a gate from the local and global context of both.

When: two feature maps of one shape are added, as in a skip connection, and each place should choose
    between them.
Paper: Attentional Feature Fusion, Dai, Gieseke, Oehmcke, Wu, Barnard, WACV 2021, arXiv 2009.14082.
Code: YimianDai/open-aff @0bcfd8a, `aff_pytorch/aff_net/fusion.py`, class `AFF`, contributed and
    merged there; the authors' own code is MXNet, `model/fusion.py`, `ASKCFuse`.
Math: out = 2 x w + 2 y (1 - w), w = sigmoid(local(x + y) + global(mean_HW(x + y))), with the two
    contexts of `ms_cam`.
Shapes: x, y (B, C, H, W) -> (B, C, H, W).
Differs: the factor 2 is in the authors' MXNet and PyTorch code (and not in their `iaff`). Their
    ImageNet ResNet-50 has reduction=16 in MXNet, 4 in PyTorch. Training needs a batch of 2 or more.
Cost: with q = c // reduction, parameters 2 (2 c q + 3 q + 3 c); MACs 2 c q (H W + 1).
"""

from torch import Tensor, nn

from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Width
from .ms_cam import Pointwise, context_gate, upstream


class AFF(nn.Module):
    """Attentional feature fusion of x and y, both (B, C, H, W); swapping them changes the output.

    Args:
        c: channels of x, of y and of the output.
        reduction: the hidden width of both contexts is `c // reduction`.

    Raises:
        ValueError: `c < reduction`; in training, a batch of one.
    """

    def __init__(self, c: Width, *, reduction: Count = 4) -> None:
        super().__init__()
        hidden = check.reduced(c, reduction)
        self.c = c
        self.local_att = Pointwise(c, hidden)
        self.global_att = Pointwise(c, hidden)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        check.image(x, self.c, self.local_att)
        check.image(y, self.c, self.local_att, name="y")
        check.same_shape(y=y, x=x)
        check.batch_norm(self.global_att.bn1, x.shape[0], x, grow="batch")
        w = context_gate(x + y, self.local_att, self.global_att)
        return 2 * y.lerp(x, w)

    def macs(self, size: InputSize) -> int:
        return 2 * self.local_att.reduce.weight.numel() * (size.height * size.width + 1)

    def extra_repr(self) -> str:
        return f"c={self.c}"


register("aff", AFF, layout="pair", family="fusion", example={"c": 64}, upstream=upstream(""))
