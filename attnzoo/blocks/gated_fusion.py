"""Gated fusion: mixes two features by a learned gate of both.

When: two features of one shape are to be mixed by a learned gate, in an image or a sequence
    network.
Paper: GMAN: A Graph Multi-Attention Network for Traffic Prediction, Zheng, Fan, Wang, Qi,
    AAAI 2020, arXiv 1911.08415, equations 11 and 12.
Code: zhengchuanpan/GMAN @45ed232, `METR/model.py`, `gatedFusion` (TensorFlow); the weights' names
    are those of the port that its README links to, VincLee8188/GMAN-PyTorch @51e884f,
    `model/model_.py`, class `gatedFusion`.
Math: h = z x + (1 - z) y, z = sigmoid(Wx x + Wy y + b). With `variant="tf"`, the authors' code, the
    output is W2 relu(BN(W1 h + b1)) + b2; with "port" a BatchNorm follows each of the four linear
    maps, the gate's two and the last one too; with "paper" it is h.
Shapes: x (..., D), y (..., D) -> (..., D), D = c; the authors have (B, T, N, D).
Differs: the paper has no output layers, the code does; the port computes yet another function, so
    there are three variants. BN normalizes over all axes but the last, eps 1e-3 in "tf" and 1e-5 in
    "port". TensorFlow's moving averages start at a variance of 0 and have a schedule; here they are
    PyTorch's. The reference vectors of "paper" are computed from the equations.
Cost: parameters 4 c^2 + 5 c ("tf"), 4 c^2 + 11 c ("port"), 2 c^2 + c ("paper"); MACs per position
    4 c^2 ("paper" 2 c^2).
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from ..ops.leading import fold, unfold
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Width


class GatedFusion(nn.Module):
    """Gated fusion of x and y, both (..., C).

    Args:
        c: channels of x, of y and of the output.
        variant: "tf", the authors' code; "port", its PyTorch port; "paper", only the equations.

    Raises:
        ValueError: in training, a single position with "tf" or "port".
    """

    def __init__(self, c: Width, *, variant: Literal["tf", "port", "paper"] = "tf") -> None:
        super().__init__()
        self.c = c
        ported = variant == "port"
        self.gate_x = nn.Sequential(_linear(c, bias=False), *_norm(c, ported))
        self.gate_y = nn.Sequential(_linear(c), *_norm(c, ported))
        self.out = None
        if variant != "paper":
            hidden = nn.BatchNorm1d(c, eps=1e-5 if ported else 1e-3)
            self.out = nn.Sequential(_linear(c), hidden, nn.ReLU(), _linear(c), *_norm(c, ported))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        check.token(x, self.c, self)
        check.token(y, self.c, self, name="y")
        check.same_shape(y=y, x=x)
        hx, hy = fold(x, keep=1), fold(y, keep=1)  # all positions: M C
        if self.out is not None:
            check.batch_norm(self.out[1], hx.shape[0], x, grow="batch or length")
        z = (self.gate_x(hx) + self.gate_y(hy)).sigmoid().to(x.dtype)
        h = hy.lerp(hx, z)
        h = h if self.out is None else self.out(h)
        return unfold(h.to(x.dtype), x, keep=1)

    def macs(self, size: InputSize) -> int:
        return size.steps * (2 if self.out is None else 4) * self.c**2

    def extra_repr(self) -> str:
        return f"c={self.c}"


def _linear(c: int, *, bias: bool = True) -> nn.Linear:
    """Glorot uniform, as TensorFlow's default, and a bias of zero."""
    layer = nn.Linear(c, c, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _norm(c: int, wanted: bool) -> list[nn.Module]:
    return [nn.BatchNorm1d(c)] if wanted else []


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    shape = (size.batch, size.steps, config["c"])
    return {"x": random(*shape), "y": random(*shape)}


register(
    "gated_fusion",
    GatedFusion,
    layout="pair",
    family="fusion",
    example={"c": 64},
    inputs=inputs,
    upstream={
        "FC_xs.convs.0.conv": "gate_x.0",
        "FC_xs.convs.0.batch_norm": "gate_x.1",
        "FC_xt.convs.0.conv": "gate_y.0",
        "FC_xt.convs.0.batch_norm": "gate_y.1",
        "FC_h.convs.0.conv": "out.0",
        "FC_h.convs.0.batch_norm": "out.1",
        "FC_h.convs.1.conv": "out.3",
        "FC_h.convs.1.batch_norm": "out.4",
    },
)
