"""Agent attention: a few pooled queries gather the values, every query reads from them.

Paper: Agent Attention: On the Integration of Softmax and Linear Attention, Han, Ye, Han, Xia, Pan,
    Wan, Song, Huang, ECCV 2024, arXiv 2312.08874.
Code: LeapLabTH/Agent-Attention @207ce3eb, `agent_transformer/models/agent_pvt.py`, `agent_swin.py`
    and `agent_deit.py`, `AgentAttention`.
Math: per head of width d, A = pool(Q) on a sqrt(agents) x sqrt(agents) grid,
    O = softmax(Q A^T / sqrt(d) + B2) softmax(A K^T / sqrt(d) + B1) V + DWC(V), y = O Wproj + b;
    B1 = resize(an_bias) + ah_bias + aw_bias over the keys, B2 = resize(na_bias) + ha_bias + wa_bias
    over the queries; deit adds ac_bias for the class token's key and ca_bias for its query.
Shapes: image (B, C, H, W) -> the same; sequence (..., H W, C) -> the same; deit, a sequence only,
    (..., 1 + H W, C) with the class token first.
Differs: the variants differ in the projections (pvt: q and kv, and keys reduced by `sr_ratio`; swin
    and deit: one qkv), in the default of `qkv_bias` (True for swin) and in deit's class token, a
    key and a query that is neither pooled nor convolved. The authors' input has to have the size
    `window`; another one resizes the bias tables bilinearly here, and `window` itself leaves them
    as they are. A sequence has the H x W of `window`, or those of `window` scaled to its length.
    A map that `sr_ratio` does not divide, which raises in theirs, is padded with zeros below and
    on the right. Their swin ignores its mask, so that the windows of a wrapped map mix; swin here
    is one whole window. Their qk_scale has no effect and is left out.
Cost: with N = H W, r = sr_ratio, M = ceil(H / r) ceil(W / r), a = agents: parameters 4 c^2 + 11 c
    (+ 3 c with qkv_bias) + heads a (98 + the rows and columns of `window` and of its keys)
    (+ r^2 c^2 + 3 c where r > 1; + 2 heads a for deit); MACs 2 N c^2 + 2 M c^2 + 2 a (N + M) c
    + 9 N c (+ r^2 M c^2), deit with N + 1 for N and M but in the last 9 N c.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import leading
from ..ops.pooling import adaptive_average
from ..registry import Cost, Inputs, InputSize, Random, register
from ..validation import check

_GRID = 7  # rows and columns of the authors' tables an_bias and na_bias, whatever the window


def cost(
    at: InputSize,
    c: int,
    heads: int,
    agents: int,
    window: tuple[int, int],
    qkv_bias: bool | None,
    variant: str,
    sr_ratio: int,
    layout: str,
) -> Cost:
    r, first = sr_ratio, int(variant == "deit")
    bias = variant == "swin" if qkv_bias is None else qkv_bias
    h, w = (at.height, at.width) if layout == "image" else window
    n, m = h * w, -(-h // r) * -(-w // r)
    rows = sum(window) + sum(-(-side // r) for side in window) + 2 * _GRID**2 + 2 * first
    reduced = r > 1
    return Cost(
        params=4 * c * c + 11 * c + bias * 3 * c + heads * agents * rows
        + reduced * (r * r * c * c + 3 * c),
        macs=2 * (n + m + 2 * first) * c * (c + agents) + 9 * n * c + reduced * m * r * r * c * c,
    )  # fmt: skip


def inputs(random: Random, at: InputSize, config: Mapping[str, Any]) -> Inputs:
    if config["layout"] == "image":
        return {"x": random(at.batch, config["c"], at.height, at.width)}
    tokens = math.prod(config["window"]) + (config["variant"] == "deit")
    return {"x": random(at.batch, tokens, config["c"])}


@register(
    "agent",
    layout=("image", "sequence"),
    family="token",
    example={"c": 64},
    inputs=inputs,
    cost=cost,
    upstream={"qkv": "qkv"},  # the authors' names are ours
)
class AgentAttention(nn.Module):
    """Agent attention on (B, C, H, W) or (..., T, C).

    Args:
        c: channels in and out.
        heads: attention heads; must divide `c`.
        agents: pooled queries, a perfect square.
        window: rows and columns that the bias tables are made for, and a sequence's H and W.
        qkv_bias: whether queries, keys and values have biases; None: True for swin, else False.
        variant: "pvt" (with `sr_ratio`), "swin" (one whole window) or "deit" (class token first).
        sr_ratio: keys and values of pvt come from the map at 1 / sr_ratio of its size.
        layout: "image" (B, C, H, W) or "sequence" (..., T, C); deit takes "sequence".

    Raises:
        ValueError: `heads` does not divide `c`, `agents` is no square, deit with an image, or an
            `sr_ratio` above 1 for swin or deit.
    """

    def __init__(
        self,
        c: int,
        *,
        heads: int = 8,
        agents: int = 49,
        window: tuple[int, int] = (14, 14),
        qkv_bias: bool | None = None,
        variant: Literal["pvt", "swin", "deit"] = "pvt",
        sr_ratio: int = 1,
        layout: Literal["image", "sequence"] = "image",
    ) -> None:
        super().__init__()
        check.divides(of="c", by="heads", c=c, heads=heads)
        check.positive(sr_ratio=sr_ratio, **{f"window[{i}]": n for i, n in enumerate(window)})
        check.choice("variant", variant, ("pvt", "swin", "deit"))
        check.choice("layout", layout, ("image", "sequence"))
        _refuse(variant, sr_ratio, layout)
        self.c, self.heads, self.agents, self.side = c, heads, agents, _root(agents)
        self.window, self.variant, self.sr_ratio, self.layout = window, variant, sr_ratio, layout
        bias = variant == "swin" if qkv_bias is None else qkv_bias
        if variant == "pvt":
            self.q = nn.Linear(c, c, bias=bias)
            self.kv = nn.Linear(c, 2 * c, bias=bias)
        else:
            self.qkv = nn.Linear(c, 3 * c, bias=bias)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(c, c, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(c)
        self.proj = nn.Linear(c, c)
        self.dwc = nn.Conv2d(c, c, 3, padding=1, groups=c)
        (h, w), (kh, kw) = window, (-(-side // sr_ratio) for side in window)
        self.an_bias = _table(heads, agents, _GRID, _GRID)
        self.na_bias = _table(heads, agents, _GRID, _GRID)
        self.ah_bias = _table(1, heads, agents, kh, 1)
        self.aw_bias = _table(1, heads, agents, 1, kw)
        self.ha_bias = _table(1, heads, h, 1, agents)
        self.wa_bias = _table(1, heads, 1, w, agents)
        if variant == "deit":
            self.ac_bias = _table(1, heads, agents, 1)
            self.ca_bias = _table(1, heads, 1, agents)

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "image":
            check.image(x, self.c, self.proj.weight)
            size = (x.shape[2], x.shape[3])
            return _as_map(self._attend(x.flatten(2).mT, size), size)
        check.sequence(x, self.c, self.proj.weight)
        size = self._size(x.shape[-2])
        return leading.unfold(self._attend(leading.fold(x), size), x)

    def _attend(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.shape[0] == 0:  # attention of no sample gives its bias no gradient: of one, cut away
            return self._attend(F.pad(x, (0, 0, 0, 0, 0, 1)), size)[:0]
        first = int(self.variant == "deit")
        q, k, v, coarse = self._project(x, size)  # B N C, twice B M C
        pooled = adaptive_average(_as_map(q[:, first:], size), self.side, self.side)
        a = self._split(pooled.flatten(2).mT)  # B heads agents d
        to_keys, to_queries = self._key_bias(coarse), self._query_bias(size)
        gathered = F.scaled_dot_product_attention(
            a, self._split(k), self._split(v), attn_mask=to_keys.to(q.dtype)
        )
        read = F.scaled_dot_product_attention(
            self._split(q), a, gathered, attn_mask=to_queries.to(q.dtype)
        )
        local = self._local(v[:, first:], coarse, size)
        if first:
            local = F.pad(local, (0, 0, first, 0))
        y: Tensor = self.proj(read.transpose(1, 2).flatten(2) + local)
        return y

    def _project(
        self, x: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Queries, keys, values, and the size of the map that the keys lie on."""
        if self.variant != "pvt":
            q, k, v = self.qkv(x).chunk(3, -1)
            return q, k, v, size
        if self.sr_ratio == 1:  # one product for all three
            bias = None if self.q.bias is None else torch.cat((self.q.bias, self.kv.bias))
            both = F.linear(x, torch.cat((self.q.weight, self.kv.weight)), bias)
            q, k, v = both.chunk(3, -1)
            return q, k, v, size
        r, (h, w) = self.sr_ratio, size
        # Not -w % r: of a symbolic size torch.compile has no remainder of negative numbers.
        edge = (0, (w + r - 1) // r * r - w, 0, (h + r - 1) // r * r - h)
        reduced = self.sr(F.pad(_as_map(x, size), edge))
        k, v = self.kv(self.norm(reduced.flatten(2).mT)).chunk(2, -1)
        return self.q(x), k, v, (reduced.shape[2], reduced.shape[3])

    def _split(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        return x.reshape(b, t, self.heads, c // self.heads).transpose(1, 2)  # B heads T d

    def _key_bias(self, size: tuple[int, int]) -> Tensor:
        """What agents add to their energies with the keys: 1 heads agents M."""
        bias = _resized(self.an_bias, self.ah_bias[0, ..., 0], self.aw_bias[0, ..., 0, :], size)
        return torch.cat((self.ac_bias, bias), 3) if self.variant == "deit" else bias

    def _query_bias(self, size: tuple[int, int]) -> Tensor:
        """What queries add to their energies with the agents: 1 heads N agents."""
        rows, columns = self.ha_bias[0, :, :, 0].mT, self.wa_bias[0, :, 0].mT
        bias = _resized(self.na_bias, rows, columns, size).mT
        return torch.cat((self.ca_bias, bias), 2) if self.variant == "deit" else bias

    def _local(self, v: Tensor, coarse: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """The depthwise branch on the map of values: B N C."""
        values = _as_map(v, coarse)
        if self.sr_ratio > 1:
            whole = [side * self.sr_ratio for side in coarse]
            values = _cropped(F.interpolate(values, whole, mode="bilinear"), size)
        local: Tensor = self.dwc(values)
        return local.flatten(2).mT

    def _size(self, tokens: int) -> tuple[int, int]:
        """H and W of a sequence: those of `window`, or of `window` scaled to this many tokens."""
        first, (h, w) = int(self.variant == "deit"), self.window
        n = tokens - first
        if n == h * w:
            return h, w
        rows = math.isqrt(n * h // w) if n > 0 else 0
        columns = rows * w // h
        if rows * columns != n or rows * w != columns * h or n <= 0:
            what = f"{first} + H W" if first else "H W"
            raise ValueError(
                f"x has {tokens} tokens (axis T), which are not {what} for a map shaped like "
                f"window={self.window}; that takes {first + h * w}, or the window scaled"
            )
        return rows, columns

    def extra_repr(self) -> str:
        return (
            f"c={self.c}, heads={self.heads}, agents={self.agents}, window={self.window}, "
            f"variant={self.variant!r}, sr_ratio={self.sr_ratio}, layout={self.layout!r}"
        )


def _resized(grid: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    """grid + rows + columns, each per head and agent, over a map of that size: 1 heads agents H W.

    Always resized: a table of the right size comes out as it is, and no size is special.
    """
    bias = (
        F.interpolate(grid, size, mode="bilinear")
        + F.interpolate(rows, size[0], mode="linear")[..., None]
        + F.interpolate(columns, size[1], mode="linear")[..., None, :]
    )
    return bias.flatten(2)[None]


def _cropped(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The first rows and columns; a slice would tie an exported graph to maps it need not crop."""
    if not torch.compiler.is_compiling():
        return image[..., : size[0], : size[1]]
    rows, columns = (torch.arange(n, device=image.device) for n in size)
    return image.index_select(2, rows).index_select(3, columns)


def _as_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x.mT.reshape(x.shape[0], x.shape[2], *size)  # B C H W


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def _root(agents: int) -> int:
    """The side of the agents' grid."""
    check.positive(agents=agents)
    side = math.isqrt(agents)
    if side * side != agents:
        raise ValueError(
            f"agents={agents} must be a perfect square; "
            f"the nearest are {side**2}, {(side + 1) ** 2}"
        )
    return side


def _refuse(variant: str, sr_ratio: int, layout: str) -> None:
    """What the variants do not have."""
    if variant != "pvt" and sr_ratio != 1:
        raise ValueError(
            f"sr_ratio={sr_ratio} must be 1 for variant={variant!r}; variant='pvt' has it"
        )
    if variant == "deit" and layout != "sequence":
        raise ValueError(
            f"layout={layout!r} must be 'sequence' for variant='deit', whose class token comes "
            "first; an image without one takes variant='swin', the same but for that token"
        )
