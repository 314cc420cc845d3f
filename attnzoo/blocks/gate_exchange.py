"""Gate exchange: sums several maps, weighted per channel by a softmax over the maps.

When: several maps of one shape are to be fused and each channel should choose among them.
Paper: none; derived from a prose description ("global average pooling, sigmoid, concatenation,
    softmax across the inputs, weighted sum"), with the gates of EPSANet (arXiv 2105.14447).
Code: none published; murufeng/EPSANet @9955041, `models/epsanet.py`, has this weighting inside
    `PSAModule`, which concatenates where this block sums. The reference vectors are derived too.
Math: y = sum_i a_i x_i, a = softmax_i(g_i),
    g_i = sigmoid(W2_i relu(W1_i mean_HW(x_i) + b1_i) + b2_i), W1_i: (c // reduction, c).
Shapes: n maps (B, C, H, W) -> (B, C, H, W).
Differs: the bottleneck with ReLU and biases, its own weights for each map and the softmax for each
    channel are choices made here. A softmax of sigmoids is never far from uniform: the largest
    weight is less than e times the smallest.
Cost: with r = c // reduction, parameters n (2 c r + c + r); MACs n 2 c r.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import AtLeast, AtMost, Count, Width
from .psa import SEWeight


class GateExchange(nn.Module):
    """Gate exchange on a list of n maps (B, C, H, W) of one shape.

    Args:
        c: channels of every map.
        n: number of maps.
        reduction: the gates' hidden width is `c // reduction`.

    Raises:
        ValueError: `c < reduction`.
    """

    def __init__(
        self,
        c: Width,
        *,
        n: Annotated[int, AtLeast(2), AtMost(1000)] = 4,
        reduction: Count = 16,
    ) -> None:
        super().__init__()
        hidden = check.reduced(c, reduction)
        self.c = c
        self.gates = nn.ModuleList(SEWeight(c, hidden) for _ in range(n))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        check.listed(features, len(self.gates), name="features")
        named = {f"features[{i}]": x for i, x in enumerate(features)}
        for name, x in named.items():
            check.image(x, self.c, self, name=name)
        check.same_shape(**named)
        means = [x.mean((2, 3)) for x in features]  # each B C
        gates = torch.stack([gate(z) for gate, z in zip(self.gates, means, strict=True)])
        weights = gates.softmax(0)[..., None, None].to(features[0].dtype)  # n B C 1 1
        y = weights[0] * features[0]
        for a, x in zip(weights[1:], features[1:], strict=True):
            y = torch.addcmul(y, a, x)
        return y

    def macs(self, size: InputSize) -> int:
        return sum(p.numel() for p in self.gates.parameters() if p.ndim == 2)  # no biases

    def extra_repr(self) -> str:
        return f"c={self.c}"


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    shape = (size.batch, config["c"], size.height, size.width)
    return {"features": [random(*shape) for _ in range(config["n"])]}


register(
    "gate_exchange",
    GateExchange,
    layout="features",
    family="fusion",
    example={"c": 64},
    inputs=inputs,
    upstream={},
)
