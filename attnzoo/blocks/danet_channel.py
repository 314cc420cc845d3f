"""Channel attention of DANet: every channel attends to the channels least similar to it.

When: channels should exchange information at a cost linear in the number of pixels.
Paper: Dual Attention Network for Scene Segmentation, Fu, Liu, Tian, Li, Bao, Fang, Lu, CVPR 2019,
    arXiv 1809.02983.
Code: junfu1115/DANet @b0a0fa0, `encoding/nn/da_att.py`, class `CAM_Module`.
Math: y = gamma * softmax(-X X^T) X + x, X = x as a (c, H W) matrix.
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the paper has softmax(X X^T); the code, which we follow, subtracts the energies from their
    row's maximum, which gives softmax(-X X^T). Ours computes the energies of half-precision inputs
    in float32 (theirs overflow float16), and accepts strided inputs.
Cost: parameters 1; MACs 2 c^2 H W.
"""

import torch
from torch import Tensor, nn

from ..autograd import custom_gradient, danet_channel
from ..ops.memory_format import match_memory_format
from ..ops.precision import in_one_dtype, upcast
from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Width


def channel_attention(x: Tensor, gamma: Tensor) -> Tensor:
    """gamma * softmax(-X X^T) X + X on (B, C, N)."""
    rows = upcast(x)
    attention = (rows @ rows.mT).neg().softmax(-1)  # B C C
    # Adding the identity to the matrix adds x without another pass over it.
    residual = torch.eye(attention.shape[-1], dtype=attention.dtype, device=attention.device)
    return (gamma * attention + residual).to(x.dtype) @ x


# Not in autocast's dtype, in which the energies would be rounded, or overflow in float16.
channel_attention = in_one_dtype(custom_gradient(channel_attention, danet_channel.pair))


class CAM(nn.Module):
    """Channel attention module on (B, C, H, W), with a residual gated by `gamma` (0 at first).

    Args:
        c: channels in and out; only the check of the input depends on it.
    """

    def __init__(self, c: Width) -> None:
        super().__init__()
        self.c = c
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.gamma)
        y = channel_attention(x.flatten(2), self.gamma)
        return match_memory_format(y.reshape(x.shape), x)

    def macs(self, size: InputSize) -> int:
        return 2 * self.c**2 * size.height * size.width

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "danet_channel",
    CAM,
    layout="image",
    family="channel",
    example={"c": 64},
    upstream={},  # the authors' name is the same
    known_variants=(
        KnownVariant(
            whose="changzy00's CAM",
            keys=("beta",),
            lacks=("weight", "bias", "gamma"),
            computes="takes the softmax of the energies themselves, not of their negatives",
        ),
    ),
)
