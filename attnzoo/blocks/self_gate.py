"""Self gate: scales each channel by EPSANet's squeeze-and-excitation weight of the same map.

When: EPSANet's channel gate is wanted by itself; it is that of `se` with biases.
Paper: none; derived from a prose description of gates, with squeeze-and-excitation
    (arXiv 1709.01507) in the form of EPSANet (arXiv 2105.14447).
Code: murufeng/EPSANet @9955041, `models/epsanet.py`, class `SEWeightModule`, gives the weight; the
    product with x is derived, and the reference vectors are derived likewise.
Math: y = x * sigmoid(W2 relu(W1 mean_HW(x) + b1) + b2), W1: (c // reduction, c).
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the arithmetic is that of `se` with bias=True; the names of the weights are EPSANet's.
Cost: with r = c // reduction, parameters 2 c r + c + r; MACs 2 c r.
"""

from torch import Tensor, nn

from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Width
from .psa import SEWeight


class SelfGate(nn.Module):
    """Self gate on (B, C, H, W).

    Args:
        c: channels in and out.
        reduction: the gate's hidden width is `c // reduction`.

    Raises:
        ValueError: `c < reduction`.
    """

    def __init__(self, c: Width, *, reduction: Count = 16) -> None:
        super().__init__()
        self.c = c
        self.gate = SEWeight(c, check.reduced(c, reduction))

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.gate)
        gate: Tensor = self.gate(x.mean((2, 3)))  # B C
        return x * gate[:, :, None, None].to(x.dtype)

    def macs(self, size: InputSize) -> int:
        return self.gate.macs()

    def extra_repr(self) -> str:
        return f"c={self.c}"


register("self_gate", SelfGate, layout="image", family="channel", example={"c": 64}, upstream={})
