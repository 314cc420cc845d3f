"""SimAM: gates every value by its distance from the channel's mean; it has no parameters.

When: no parameter may be added, as in a network whose weights are frozen or fixed in number.
Paper: SimAM: A Simple, Parameter-Free Attention Module for Convolutional Neural Networks, Yang,
    Zhang, Li, Xie, ICML 2021 (PMLR 139).
Code: ZjjConan/SimAM @ae98f43, `networks/attentions/simam_module.py`, class `simam_module`.
Math: y = x * sigmoid(d / (4 (v + e_lambda)) + 1/2), d = (x - mean_HW(x))^2,
    v = sum_HW(d) / (H W - 1).
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the paper's equation 3 has a wrong sign, as its authors say; the code, which we follow,
    does not. A 1x1 plane gives 0 / 0 in their code, and here the gate of a constant channel,
    sigmoid(1/2). Half precision is computed in float32: sums of squares overflow float16, which
    silently makes every gate sigmoid(1/2). The default is the code's; the authors' published
    networks were trained with e_lambda=0.1. It has the units of x squared.
Cost: parameters 0; MACs 0, but about six elementwise operations and two sums per value.
"""

from typing import Annotated

from torch import Tensor, nn

from ..ops.precision import upcast
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import AtLeast, Width


def simam(x: Tensor, e_lambda: float) -> Tensor:
    """The equation, on (B, C, H, W)."""
    deviation = x - x.mean((2, 3), keepdim=True)
    d = deviation.square()
    values = x.shape[2] * x.shape[3]
    n = values - 1 + 1 // values  # 1 for a single value, whose deviation is 0
    v = d.sum((2, 3), keepdim=True) / n
    return x * (d / (4 * (v + e_lambda)) + 0.5).sigmoid()


class SimAM(nn.Module):
    """SimAM on (B, C, H, W).

    Args:
        c: channels in and out; only the check of the input depends on it.
        e_lambda: added to the variance, in the units of x squared.
    """

    def __init__(self, c: Width, *, e_lambda: Annotated[float, AtLeast(1e-30)] = 1e-4) -> None:
        super().__init__()
        self.c, self.e_lambda = c, e_lambda

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c)
        return simam(upcast(x), self.e_lambda).to(x.dtype)

    def macs(self, size: InputSize) -> int:
        return 0

    def extra_repr(self) -> str:
        return f"c={self.c}, e_lambda={self.e_lambda}"


register("simam", SimAM, layout="image", family="spatial", example={"c": 64}, upstream={})
