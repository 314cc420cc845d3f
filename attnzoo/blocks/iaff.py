"""Iterative attentional feature fusion: mixes two maps, then mixes them again by the first result.

When: as `aff`, when the first sum of the two maps is itself too crude; at twice its cost.
Paper: Attentional Feature Fusion, Dai, Gieseke, Oehmcke, Wu, Barnard, WACV 2021, arXiv 2009.14082.
Code: YimianDai/open-aff @0bcfd8a, `model/fusion.py` (MXNet), `ResGlobLocaforGlobLocaChaFuse`;
    weights and names of `aff_pytorch/aff_net/fusion.py`, class `iAFF`, contributed there.
Math: w1 = sigmoid(local(u) + global(mean_HW(u))), u = x + y; v = x w1 + y (1 - w1);
    w2 = sigmoid(local2(v) + global2(mean_HW(v))); out = x w2 + y (1 - w2), with the contexts of
    `ms_cam`.
Shapes: x, y (B, C, H, W) -> (B, C, H, W).
Differs: the PyTorch file calls its first global context twice by mistake and never the second,
    unlike the paper and the MXNet code; `shared_global=True` does the same, for weights trained
    with that file, and has no second one. Neither code has the factor 2 of `aff`. Training needs a
    batch of 2 or more.
Cost: with q = c // reduction, parameters 4 (2 c q + 3 q + 3 c), three quarters of it when shared;
    MACs 4 c q (H W + 1).
"""

from torch import Tensor, nn

from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Width
from .ms_cam import Pointwise, context_gate, upstream


class IAFF(nn.Module):
    """Iterative attentional feature fusion of x and y, both (B, C, H, W).

    Args:
        c: channels of x, of y and of the output.
        reduction: the hidden width of all contexts is `c // reduction`.
        shared_global: whether both rounds share one global context, as in the PyTorch file.

    Raises:
        ValueError: `c < reduction`; in training, a batch of one.
    """

    def __init__(self, c: Width, *, reduction: Count = 4, shared_global: bool = False) -> None:
        super().__init__()
        hidden = check.reduced(c, reduction)
        self.c = c
        self.local_att = Pointwise(c, hidden)
        self.global_att = Pointwise(c, hidden)
        self.local_att2 = Pointwise(c, hidden)
        self.global_att2 = None if shared_global else Pointwise(c, hidden)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        check.image(x, self.c, self.local_att)
        check.image(y, self.c, self.local_att, name="y")
        check.same_shape(y=y, x=x)
        check.batch_norm(self.global_att.bn1, x.shape[0], x, grow="batch")
        v = y.lerp(x, context_gate(x + y, self.local_att, self.global_att))
        again = self.global_att if self.global_att2 is None else self.global_att2
        return y.lerp(x, context_gate(v, self.local_att2, again))

    def macs(self, size: InputSize) -> int:
        return 4 * self.local_att.reduce.weight.numel() * (size.height * size.width + 1)

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "iaff",
    IAFF,
    layout="pair",
    family="fusion",
    example={"c": 64},
    # the PyTorch file never calls its second global context
    upstream=(upstream("", "2"), {**upstream("", "2"), "global_att2": None}),
)
