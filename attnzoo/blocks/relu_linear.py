"""Multi-scale ReLU linear attention: keys and values summed once, at several receptive fields.

When: high-resolution maps need global attention without a softmax.
Paper: EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction, Cai, Li, Hu,
    Gan, Han, ICCV 2023, arXiv 2205.14756.
Code: mit-han-lab/efficientvit @de7d7733, `efficientvit/models/nn/ops.py`, `LiteMLA`.
Math: z_0 = Wqkv x, z_s = grouped 1x1 (depthwise s x s (z_0)) for each s of `scales`; every z is
    split into heads of [q, k, v], `dim` channels each; per head, over the T = H W pixels,
    o_i = sum_j relu(q_i).relu(k_j) v_j / (sum_j relu(q_i).relu(k_j) + eps);
    y = BN(Wproj [o_0, o_s, ...]). heads = int(c // dim * heads_ratio).
Shapes: (B, C, H, W) -> (B, c_out, H, W).
Differs: the paper's normalizer has no eps. The authors' code multiplies queries with keys first if
    H W <= dim, else keys with values; both give the same result, and the second order is used here
    at every size. Products, sums and the division run in float32 for half precision and autocast,
    in the authors' code only some of them. A query whose products with all keys are zero gives 0
    for every eps; in theirs, 0 / eps. timm has eps=1e-5; the authors' L networks set `norm.eps` to
    1e-7 after building.
Cost: with t = heads dim and S scales, parameters 3 t c + sum_s 3 t (s^2 + dim) + (1 + S) t c_out
    + 2 c_out; MACs H W (the same without 2 c_out, + 2 (1 + S) t (dim + 1)), which run at every
    size; the authors' order where H W <= dim has H W for dim + 1.
"""

from typing import Annotated, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd import custom_gradient, relu_linear
from ..autograd.depthwise import depthwise
from ..ops import memory_format
from ..ops.folding import is_depthwise, is_pointwise
from ..ops.precision import autocast_disabled, upcast
from ..registry import InputSize, register
from ..validation import check
from ..validation.types import AtLeast, Odd, Width


def relu_linear_attention(z: Tensor, dim: int, eps: float) -> Tensor:
    """(N, 3 dim, T), a head's queries, keys and values in that order, to (N, dim, T)."""
    q, k, v = z[:, :dim].relu(), z[:, dim : 2 * dim].relu(), z[:, 2 * dim :]
    v = F.pad(v, (0, 0, 0, 1), value=1.0)  # a row of ones sums the weights: N dim+1 T
    o = (v @ k.mT) @ q  # N dim+1 T
    total = o[:, dim:]  # if it is 0, so are all products
    return o[:, :dim] / torch.where(total > 0, total + eps, 1.0)


relu_linear_attention = custom_gradient(relu_linear_attention, relu_linear.pair)


class LiteMLA(nn.Module):
    """Multi-scale ReLU linear attention on (B, C, H, W).

    Args:
        c: channels in.
        c_out: channels out; None for `c`.
        dim: channels of a head's query, key and value.
        heads_ratio: heads are `int(c // dim * heads_ratio)`.
        scales: odd kernel sizes of the depthwise convolutions; () for none.
        eps: added to the normalizer.

    Raises:
        ValueError: `heads_ratio` leaves no head.
    """

    def __init__(
        self,
        c: Width,
        *,
        c_out: Width | None = None,
        dim: Width = 8,
        heads_ratio: float = 1.0,
        scales: tuple[Odd, ...] = (5,),
        eps: Annotated[float, AtLeast(0)] = 1e-15,
    ) -> None:
        super().__init__()
        out = c if c_out is None else c_out
        heads = _heads(c, dim, heads_ratio)
        self.c, self.dim, self.heads, self.eps = c, dim, heads, eps
        width = 3 * heads * dim
        self.qkv = nn.Conv2d(c, width, 1, bias=False)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(width, width, s, padding=s // 2, groups=width, bias=False) for s in scales
        )
        self.pointwise = nn.ModuleList(
            nn.Conv2d(width, width, 1, groups=3 * heads, bias=False) for _ in scales
        )
        self.proj = nn.Conv2d((1 + len(scales)) * heads * dim, out, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self.qkv)
        check.batch_norm(self.norm, x.shape[0] * x.shape[2] * x.shape[3], x)
        z = self.qkv(x)
        fields = [z]
        for deep, point in zip(self.depthwise, self.pointwise, strict=True):
            near = depthwise(z, deep.weight, deep.bias) if is_depthwise(deep) else deep(z)
            if is_pointwise(point, 3 * self.heads) and point.bias is None:
                fields.append(_grouped(near, point.weight))
            else:
                fields.append(point(near))
        y: Tensor = self.norm(self.proj(torch.cat([self._attend(f) for f in fields], 1)))
        return memory_format.match_memory_format(memory_format.contiguous_gradient(y), x)

    def _attend(self, z: Tensor) -> Tensor:
        b, _, h, w = z.shape
        heads = upcast(z.reshape(b * self.heads, 3 * self.dim, h * w))
        with autocast_disabled(heads):
            o = relu_linear_attention(heads, self.dim, self.eps)
        return torch.reshape(o.to(z.dtype), (b, self.heads * self.dim, h, w))

    def macs(self, size: InputSize) -> int:
        pixels, fields = size.height * size.width, 1 + len(self.depthwise)
        layers = (self.qkv, *self.depthwise, *self.pointwise, self.proj)
        weights = sum(cast(nn.Conv2d, layer).weight.numel() for layer in layers)
        products = pixels if pixels <= self.dim else self.dim + 1  # the cheaper order
        return pixels * (weights + 2 * fields * self.heads * self.dim * products)

    def extra_repr(self) -> str:
        return f"c={self.c}, dim={self.dim}, heads={self.heads}, eps={self.eps}"


def _grouped(z: Tensor, weight: Tensor) -> Tensor:
    """A grouped 1x1 convolution as one batched product, which is faster than the convolution."""
    b, c, h, w = z.shape
    dim = weight.shape[1]
    groups = weight.view(c // dim, dim, dim).repeat(b, 1, 1)
    return torch.bmm(groups, z.reshape(b * c // dim, dim, h * w)).view(b, c, h, w)


def _heads(c: int, dim: int, heads_ratio: float) -> int:
    heads = int(c // dim * heads_ratio)
    if heads < 1:
        raise ValueError(
            f"heads_ratio={heads_ratio} leaves no head: int(c // dim * heads_ratio) is {heads} for "
            f"c={c}, dim={dim}; take dim={min(dim, c)} or less with heads_ratio=1.0 or more"
        )
    return heads


register(
    "relu_linear",
    LiteMLA,
    layout="image",
    family="token",
    example={"c": 64},
    upstream={  # timm has the same names
        "qkv.conv": "qkv",
        "aggreg.*.0": "depthwise.*",
        "aggreg.*.1": "pointwise.*",
        "proj.conv": "proj",
        "proj.norm": "norm",
    },
)
