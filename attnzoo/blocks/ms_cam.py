"""Multi-scale channel attention: gates every value by its local and global channel context.

When: objects differ in size: the gate looks at the place and at the whole map at once.
Paper: Attentional Feature Fusion, Dai, Gieseke, Oehmcke, Wu, Barnard, WACV 2021, arXiv 2009.14082.
Code: YimianDai/open-aff @0bcfd8a, `aff_pytorch/aff_net/fusion.py`, class `MS_CAM`, contributed and
    merged there; the authors' own code is MXNet, `model/fusion.py`.
Math: y = x * sigmoid(local(x) + global(mean_HW(x))), where local and global are both
    BN(W2 relu(BN(W1 u + b1)) + b2), with separate weights, W1: (c // reduction, c).
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: paper, code and this block agree. The authors' ImageNet networks have reduction=16 in
    MXNet, 4 in PyTorch. The BatchNorm of the global context gets one value per sample and channel,
    so that training needs a batch of 2 or more.
Cost: with q = c // reduction, parameters 2 (2 c q + 3 q + 3 c); MACs 2 c q (H W + 1).
"""

from torch import Tensor, nn

from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Width


class Pointwise(nn.Sequential):
    """One context's bottleneck of 1x1 convolutions: conv, BN, ReLU, conv, BN."""

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(c, hidden, 1)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(hidden, c, 1)
        self.bn2 = nn.BatchNorm2d(c)


def context_gate(u: Tensor, local_att: nn.Module, global_att: nn.Module) -> Tensor:
    """sigmoid(local(u) + global(mean of u)), on (B, C, H, W)."""
    gate: Tensor = (local_att(u) + global_att(u.mean((2, 3), keepdim=True))).sigmoid()
    return gate.to(u.dtype)


class MSCAM(nn.Module):
    """Multi-scale channel attention module on (B, C, H, W).

    Args:
        c: channels in and out.
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

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.local_att)
        check.batch_norm(self.global_att.bn1, x.shape[0], x, grow="batch")
        return x * context_gate(x, self.local_att, self.global_att)

    def macs(self, size: InputSize) -> int:
        return 2 * self.local_att.reduce.weight.numel() * (size.height * size.width + 1)

    def extra_repr(self) -> str:
        return f"c={self.c}"


# The authors' index of each layer of a context; their global ones begin with the pooling.
_LAYERS = {"reduce": 0, "bn1": 1, "expand": 3, "bn2": 4}


def upstream(*suffixes: str) -> dict[str, str]:
    """The authors' names of the contexts `local_att` + suffix and `global_att` + suffix."""
    return {
        f"{scale}_att{suffix}.{i + pooled}": f"{scale}_att{suffix}.{layer}"
        for suffix in suffixes
        for scale, pooled in (("local", 0), ("global", 1))
        for layer, i in _LAYERS.items()
    }


register(
    "ms_cam", MSCAM, layout="image", family="channel", example={"c": 64}, upstream=upstream("")
)
