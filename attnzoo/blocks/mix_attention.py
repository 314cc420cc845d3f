"""Mix-attention of U-MixFormer: queries of one stage attend to the maps of all stages.

When: a decoder should let each stage of a feature pyramid query all others.
Paper: U-MixFormer: UNet-like Transformer with Mix-Attention for Efficient Semantic Segmentation,
    Yeom, von Klitzing, WACV 2025, arXiv 2312.06272.
Code: julian-klitzing/u-mixformer @0d362182, `mmseg/models/decode_heads/umixformer_head.py`,
    classes `CatKey`, `CrossAttention`, `Block`; "city": `umixformer_head_city.py`.
Math: y = concat_i W_i pool_i(f_i), each map averaged over cells of pools[i] x pools[i] onto the
    grid of the deepest (where pools[i] is 1 as it is, without W_i); k, v = W_kv gelu(y);
    out = W_o softmax(W_q x k^T / sqrt(c / heads)) v + b_o. With `block`, x and y are normalized,
    x = x + out, x = LN(x), x = x + W_2 gelu(DWConv3x3(W_1 x)): the stream is the normalized x.
    "city" halves the grid of queries, keys and values: pools are doubled,
    q = W_q gelu(LN(W_s pool_2(x))), k, v = W_kv gelu(LN(y)), out is upsampled bilinearly.
Shapes: (B, c, H, W) and a list of maps (B, dims[i], H_i, W_i), deepest first, for which
    ceil(H_i / pools[i]) and ceil(W_i / pools[i]) agree -> (B, c, H, W).
Differs: the authors' "ade" has a convolution and a norm that are never called; they are left out
    and their keys ignored. Their "city" fails at most odd sizes; here a side of 1 is not halved.
Cost: with N = H W, M tokens of y, D = sum_i dims[i], r = mlp_ratio: parameters
    sum_{pools[i] > 1} (d_i^2 + d_i) + 2 c^2 + 2 D c + c; `block` adds 4 c + 2 D + 2 r c^2 +
    11 r c + c, "city" c^2 + 3 c + 2 D. MACs sum_{pools[i] > 1} d_i^2 M + 2 N c^2 + 2 M D c +
    2 N M c; `block` adds N (2 r c^2 + 9 r c); "city" has floor(H / 2) floor(W / 2) for the N of
    the attention, and that times c^2 on top.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd.attention import attention
from ..ops.memory_format import match_memory_format
from ..ops.precision import downcast
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.messages import shown
from ..validation.types import Count, Counts, Positive, Rate, Width

Variant = Literal["ade", "city"]
Grid = tuple[int, int]


class CatKey(nn.Module):
    """The mixed tokens: pooled maps, each after a convolution of its own, side by side."""

    def __init__(self, dims: tuple[int, ...], pools: tuple[int, ...]) -> None:
        super().__init__()
        self.pools = pools
        pooled = [d for d, pool in zip(dims, pools, strict=True) if pool > 1]
        self.sr_list = nn.ModuleList(nn.Conv2d(d, d, 1) for d in pooled)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Pooled maps of one size to (B, M, D)."""
        convs = iter(self.sr_list)
        pairs = zip(maps, self.pools, strict=True)
        return torch.cat([next(convs)(x) if p > 1 else x for x, p in pairs], 1).flatten(2).mT


class CrossAttention(nn.Module):
    """Attention of the pixels of a map over the mixed tokens."""

    def __init__(self, c: int, mixed: int, heads: int, variant: Variant) -> None:
        super().__init__()
        self.heads, self.halved = heads, variant == "city"
        self.q = nn.Linear(c, c, bias=False)
        self.kv = nn.Linear(mixed, 2 * c, bias=False)
        self.proj = nn.Linear(c, c)
        if self.halved:
            self.sr1, self.norm1 = nn.Conv2d(c, c, 1), nn.LayerNorm(c)
            self.norm2 = nn.LayerNorm(mixed)

    def forward(self, x: Tensor, y: Tensor, grid: Grid) -> Tensor:
        """(B, H W, c) of a map of size `grid`, and (B, M, D) -> (B, H W, c)."""
        if not self.halved:
            return self._attend(x, y)
        half = F.avg_pool2d(_image(x, grid), (min(2, grid[0]), min(2, grid[1])))
        tokens = F.gelu(self.norm1(self.sr1(half).flatten(2).mT))
        out = _image(self._attend(tokens, self.norm2(y)), (half.shape[2], half.shape[3]))
        return F.interpolate(out, grid, mode="bilinear", align_corners=False).flatten(2).mT

    def _attend(self, x: Tensor, y: Tensor) -> Tensor:
        q = torch.unflatten(self.q(x), 2, (self.heads, -1)).transpose(1, 2)  # B heads N d
        both = torch.unflatten(self.kv(F.gelu(y)), 2, (2, self.heads, -1))
        k, v = both.permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class MixFFN(nn.Module):
    """Two layers with a depthwise convolution over the map between them."""

    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(c, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, c)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        hidden = self.dwconv(_image(self.fc1(x), grid)).flatten(2).mT
        out: Tensor = self.fc2(F.gelu(hidden))
        return out


class Block(nn.Module):
    """Mix-attention and MLP with the authors' norms, whose output is the residual stream."""

    def __init__(
        self, c: int, mixed: int, heads: int, hidden: int, drop_path: float, variant: Variant
    ) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(c), nn.LayerNorm(mixed), nn.LayerNorm(c)
        self.attn = CrossAttention(c, mixed, heads, variant)
        self.mlp = MixFFN(c, hidden)
        self.drop_path = nn.Dropout(drop_path)

    def forward(self, x: Tensor, y: Tensor, grid: Grid) -> Tensor:
        x, y = (downcast(t, self.norm1) for t in (x, y))
        x = self.norm1(x)
        x = x + self._survive(self.attn(x, self.norm2(y), grid))
        x = self.norm3(downcast(x, self.norm3))
        return x + self._survive(self.mlp(x, grid))

    def _survive(self, branch: Tensor) -> Tensor:
        """The branch, set to zero for some samples."""
        if not (self.training and self.drop_path.p):
            return branch
        factor: Tensor = self.drop_path(branch.new_ones(branch.shape[0], 1, 1))
        return branch * factor


class MixAttention(nn.Module):
    """Mix-attention: `block(x, [deepest, ..., shallowest])`.

    Args:
        c: channels of the query map, in and out.
        dims: channels of each map of the list, deepest first.
        pools: side of the cells over which each map is averaged; 1 leaves a map unchanged.
        heads: attention heads; must divide `c`.
        block: the authors' whole Block, with norms, residuals and MLP.
        mlp_ratio: hidden channels of the MLP per channel, with `block`.
        drop_path: rate at which a sample skips a branch in training, with `block`.
        variant: "ade" or "city", the authors' two forms; "city" doubles all pools.

    Raises:
        ValueError: `heads` does not divide `c`, `pools` are not one per map, or maps that do not
            pool to one size.
    """

    def __init__(
        self,
        c: Width,
        *,
        dims: Counts,
        pools: Counts = (1, 2, 4, 8),
        heads: Count = 8,
        block: bool = False,
        mlp_ratio: Positive = 4,
        drop_path: Rate = 0.0,
        variant: Variant = "ade",
    ) -> None:
        super().__init__()
        check.divides(of="c", by="heads", c=c, heads=heads)
        if len(pools) != len(dims):
            raise ValueError(
                f"pools={shown(pools)} has {len(pools)} items, dims={shown(dims)} {len(dims)}; "
                f"take one for each map, such as pools={tuple(2**i for i in range(len(dims)))}"
            )
        self.c, self.dims, self.variant = c, dims, variant
        self.hidden = int(c * mlp_ratio) if block else 0
        self.pools = tuple(2 * pool for pool in pools) if variant == "city" else pools
        self.cat_key = CatKey(dims, self.pools)
        config = (c, sum(dims), heads)
        whole = (*config, self.hidden, drop_path, variant)
        self.attn = Block(*whole) if block else CrossAttention(*config, variant)
        self.attn.apply(_initialize)

    def forward(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        check.image(x, self.c, self)
        check.pyramid(features, self.dims, self.pools, x)
        return self.mix(x, [average(f, p) for f, p in zip(features, self.pools, strict=True)])

    def mix(self, x: Tensor, pooled: Sequence[Tensor]) -> Tensor:
        """The same on maps that `average` has pooled already."""
        grid = (x.shape[2], x.shape[3])
        y: Tensor = self.attn(x.flatten(2).mT, self.cat_key(pooled), grid)
        return match_memory_format(_image(y, grid), x)

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample, whose query map has the given size."""
        largest, query = max(self.pools), (size.height, size.width)
        return self.products(query, (-(-query[0] // largest), -(-query[1] // largest)))

    def products(self, query: Grid, keys: Grid) -> int:
        """Multiply-adds of a query map and mixed tokens of the given sizes."""
        c, n, m, city = self.c, query[0] * query[1], keys[0] * keys[1], self.variant == "city"
        pooled = sum(d * d for d, pool in zip(self.dims, self.pools, strict=True) if pool > 1)
        queries = max(1, query[0] // 2) * max(1, query[1] // 2) if city else n
        macs = m * (pooled + 2 * sum(self.dims) * c) + queries * c * (2 * c + 2 * m + city * c)
        return macs + n * self.hidden * (2 * c + 9)

    def extra_repr(self) -> str:
        return f"c={self.c}, dims={self.dims}, pools={self.pools}"


def average(x: Tensor, cell: int) -> Tensor:
    """Means over cells of side `cell`; those at the border average only the pixels inside."""
    # Without padding, count_include_pad has no effect, but inductor's gradient is wrong with True.
    return F.avg_pool2d(x, cell, ceil_mode=True, count_include_pad=False) if cell > 1 else x


def _image(tokens: Tensor, grid: Grid) -> Tensor:  # (B, H W, C) to (B, C, H, W)
    return torch.unflatten(tokens.mT, 2, grid)


def _initialize(layer: nn.Module) -> None:
    """The authors' initialization: truncated normal if linear, by fan-out for convolutions."""
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
    elif isinstance(layer, nn.Conv2d):
        fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels // layer.groups
        nn.init.normal_(layer.weight, 0, (2 / fan_out) ** 0.5)
    if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    """A query of the given size and maps, deepest first, that halve it as encoders do."""
    pools = [pool * (1 + (config["variant"] == "city")) for pool in config["pools"]]
    return {
        "x": random(size.batch, config["c"], size.height, size.width),
        "features": [
            random(size.batch, d, *(-(-n * pool // max(pools)) for n in (size.height, size.width)))
            for d, pool in zip(config["dims"], pools, strict=True)
        ],
    }


_NAMES = {"attn.mlp.dwconv.dwconv": "attn.mlp.dwconv"}
_IDLE = ("attn.sr", "attn.norm", "attn.attn.sr", "attn.attn.norm", "attn.attn.sr2")

register(
    "mix_attention",
    MixAttention,
    layout="features",
    family="fusion",
    example={"c": 32, "dims": (48, 32, 16), "pools": (1, 2, 4), "block": True},
    inputs=inputs,
    upstream={**_NAMES, **dict.fromkeys(_IDLE)},
)
