"""Global context: one vector, attention-pooled over all positions, added to each or scaling it.

When: every position needs the same summary of the whole image, for less than pairwise attention
    costs.
Paper: GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond, Cao, Xu, Lin, Wei, Hu,
    ICCV Workshops 2019, arXiv 1904.11492.
Code: xvjiarui/GCNet @029db54, `mmdet/ops/gcb/context_block.py`, class `ContextBlock`.
Math: context = sum_n a_n x_n, a = softmax over all positions n of w x_n + b (`pooling="att"`), or
    the mean over them ("avg"); t(z) = W2 relu(LayerNorm(W1 z + b1)) + b2, W1: (p, c) with
    p = int(c / reduction); y = x * sigmoid(t_mul(context)) + t_add(context), of which `fusion`
    picks one or both.
Shapes: (B, C, H, W) -> (B, C, H, W).
Differs: paper, code and this block agree; the authors' `ratio` is 1 / reduction. The softmax and
    the weighted sum run in float32 for half precision. The bias of the attention's logits does not
    affect the output, but the authors' weights have it. With a hidden width of one, the LayerNorm
    makes the result independent of the context. changzy00's GCModule lacks the softmax.
Cost: with F = 1 or 2 fusions, parameters F (2 c p + c + 3 p) (+ c + 1 with "att"); MACs F 2 c p
    (+ 2 c H W with "att").
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ..ops.precision import autocast_disabled, upcast
from ..registry import InputSize, KnownVariant, register
from ..validation import check
from ..validation.types import Count, Width


class GlobalContext(nn.Module):
    """Global context on (B, C, H, W); initially "add" is the identity and "mul" x / 2.

    Args:
        c: channels in and out.
        reduction: the transforms' hidden width is `int(c * (1 / reduction))`, as the authors'.
        pooling: "att" weights the positions by a softmax, "avg" takes their mean.
        fusion: what the transformed context does: "add" to x, "mul" by its sigmoid, or "both",
            the product first.

    Raises:
        ValueError: a hidden width of zero.
    """

    def __init__(
        self,
        c: Width,
        *,
        reduction: Count = 16,
        pooling: Literal["att", "avg"] = "att",
        fusion: Literal["add", "mul", "both"] = "add",
    ) -> None:
        super().__init__()
        hidden = int(c * (1 / reduction))
        if not hidden:
            raise ValueError(
                f"reduction={reduction} leaves no channel of c={c} (int(c * (1 / reduction)) = 0); "
                f"take reduction={max(1, c - 1)} or less"
            )
        self.c, self.hidden = c, hidden
        self.conv_mask = nn.Conv2d(c, 1, 1) if pooling == "att" else None
        if self.conv_mask is not None:
            weight, bias = self.conv_mask.parameters()
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
            nn.init.zeros_(bias)
        self.mul = _transform(c, hidden) if fusion != "add" else None
        self.add = _transform(c, hidden) if fusion != "mul" else None

    def forward(self, x: Tensor) -> Tensor:
        check.image(x, self.c, self)
        z = self.context(x).to(x.dtype)  # B C
        y = x if self.mul is None else x * self.mul(z).sigmoid()[:, :, None, None].to(x.dtype)
        return y if self.add is None else y + self.add(z)[:, :, None, None].to(x.dtype)

    def context(self, x: Tensor) -> Tensor:
        """The weighted mean over all positions, (B, C), in float32 at least."""
        if self.conv_mask is None:
            return x.mean((2, 3))
        a = upcast(self.conv_mask(x)).flatten(2).softmax(2)  # B 1 N
        with autocast_disabled(x):
            return torch.matmul(upcast(x).flatten(2), a.mT)[:, :, 0]

    def macs(self, size: InputSize) -> int:
        fusions = (self.mul is not None) + (self.add is not None)
        pooled = 0 if self.conv_mask is None else 2 * self.c * size.height * size.width
        return pooled + fusions * 2 * self.c * self.hidden

    def extra_repr(self) -> str:
        return f"c={self.c}"


def _transform(c: int, hidden: int) -> nn.Sequential:
    """The bottleneck of a fusion; its last layer is initialized to zero."""
    last = nn.Linear(hidden, c)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(c, hidden), nn.LayerNorm(hidden), nn.ReLU(), last)


register(
    "gc",
    GlobalContext,
    layout="image",
    family="channel",
    example={"c": 64},
    upstream={"channel_mul_conv": "mul", "channel_add_conv": "add"},
    known_variants=(
        KnownVariant(
            whose="changzy00's GCModule",
            keys=("conv.weight", "transform.0.weight"),
            computes="never applies its softmax: the weights of the positions are raw logits",
        ),
        KnownVariant(
            whose="timm's GlobalContext",
            keys=("conv_attn.weight",),
            computes="has 1e-6 in the LayerNorm, the authors 1e-5",
        ),
    ),
)
