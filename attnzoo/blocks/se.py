"""Squeeze-and-excitation: gates each channel by a bottleneck MLP of the channel means.

When: as the first block to try: the plainest channel gate, of two small linear layers.
Paper: Squeeze-and-Excitation Networks, Hu, Shen, Albanie, Sun, Wu, CVPR 2018, arXiv 1709.01507.
Code: hujie-frank/SENet @0262d43 (Caffe only); the port its README links to, moskomule/senet.pytorch
    @8cb2669, `senet/se_module.py`, is what the reference vectors were run on.
Math: y = x * sigmoid(W2 relu(W1 mean_HW(x) + b1) + b2), W1: (c // reduction, c); the biases b1, b2
    exist with `bias=True`.
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: the conference paper and the released Caffe networks have biases, the journal paper and
    the port do not; `bias=False` is the default here, `bias=True` loads the former.
Cost: with r = c // reduction, parameters 2 c r (+ c + r with bias); MACs 2 c r.
"""

from torch import Tensor, nn

from ..registry import InputSize, register
from ..validation import check
from ..validation.types import Count, Width


class SE(nn.Module):
    """Squeeze-and-excitation on (B, C, H, W).

    Args:
        c: channels in and out.
        reduction: the MLP's hidden width is `c // reduction`.
        bias: whether the two linear layers have biases.

    Raises:
        ValueError: `c < reduction`, which would leave a hidden layer of width zero.
    """

    def __init__(self, c: Width, *, reduction: Count = 16, bias: bool = False) -> None:
        super().__init__()
        hidden = check.reduced(c, reduction)
        self.c = c
        self.fc1 = nn.Linear(c, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, c, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.fc1)
        z = x.mean((2, 3))  # B C
        gate: Tensor = self.fc2(self.fc1(z).relu()).sigmoid()
        return x * gate[:, :, None, None]

    def macs(self, size: InputSize) -> int:
        return 2 * self.c * self.fc1.out_features

    def extra_repr(self) -> str:
        return f"c={self.c}"


register(
    "se",
    SE,
    layout="image",
    family="channel",
    example={"c": 64},
    upstream={"fc.0": "fc1", "fc.2": "fc2"},  # torchvision, timm and Cadene use these names
)
