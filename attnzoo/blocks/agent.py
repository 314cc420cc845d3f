"""Agent attention: a few pooled queries, the agents, gather the values, and all queries read them.

When: global attention is wanted on maps too large for softmax attention among all pixels.
Paper: Agent Attention: On the Integration of Softmax and Linear Attention, Han et al., ECCV 2024,
    arXiv 2312.08874.
Code: LeapLabTH/Agent-Attention @207ce3eb, `agent_transformer/models/agent_{pvt,swin,deit}.py`.
Math: per head of width d, A = pool(Q) on a sqrt(agents) x sqrt(agents) grid,
    O = softmax(Q A^T / sqrt(d) + B2) softmax(A K^T / sqrt(d) + B1) V + DWC(V), y = O Wproj + b;
    B1 = resize(an_bias) + ah_bias + aw_bias over the keys, B2 = resize(na_bias) + ha_bias + wa_bias
    over the queries; deit adds ac_bias for the class token's key and ca_bias for its query.
Shapes: image (B, C, H, W) -> the same; sequence (..., H W, C) -> the same; deit, a sequence only,
    (..., 1 + H W, C) with the class token first.
Differs: the variants differ in the projections (pvt: q and kv, and keys reduced by `sr_ratio`; swin
    and deit: one qkv), in the default of `qkv_bias` (True for swin) and in deit's class token, a
    key and a query that is neither pooled nor convolved. The authors' input has the size `window`;
    for another size the bias tables are resized bilinearly here. The H x W of a sequence is
    `window`, or `window` scaled to its length. A map that `sr_ratio` does not divide, an error in
    their code, is padded with zeros at the bottom and right. Their swin ignores the mask of shifted
    windows; swin here is a single window. Their qk_scale has no effect.
Cost: with N = H W, r = sr_ratio, M = ceil(H / r) ceil(W / r), a = agents: parameters 4 c^2 + 11 c
    (+ 3 c with qkv_bias) + heads a (98 + the rows and columns of `window` and of its keys)
    (+ r^2 c^2 + 3 c where r > 1; + 2 heads a for deit); MACs 2 N c^2 + 2 M c^2 + 2 a (N + M) c
    + 9 N c (+ r^2 M c^2), deit with N + 1 for N and M but in the last 9 N c.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import leading, weight_decay
from ..ops.biased_attention import biased_attention
from ..ops.crop import crop
from ..ops.grid import scaled_grid
from ..ops.pooling import adaptive_average
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import AtLeast, Count, PerfectSquare, Width

_GRID = 7  # rows and columns of the authors' tables an_bias and na_bias, for every window


def agent_attention(
    q: Tensor, k: Tensor, v: Tensor, a: Tensor, key_bias: Tensor, query_bias: Tensor
) -> Tensor:
    """softmax(q a^T / sqrt(d) + query_bias) softmax(a k^T / sqrt(d) + key_bias) v for every head.

    q (B, heads, N, d), k and v (B, heads, M, d), a (B, heads, agents, d), biases of scores.
    """
    gathered = biased_attention(a, k, v, key_bias)  # B heads agents d
    return biased_attention(q, a, gathered, query_bias)


class AgentAttention(nn.Module):
    """Agent attention on (B, C, H, W) or (..., T, C).

    Args:
        c: channels in and out.
        heads: attention heads; must divide `c`.
        agents: pooled queries, a perfect square.
        window: rows and columns that the bias tables are made for, and a sequence's H and W.
        qkv_bias: whether queries, keys and values have biases; None: True for swin, else False.
        variant: "pvt", "swin" (one whole window) or "deit" (class token first, a sequence).
        sr_ratio: keys and values of pvt come from the map at 1 / sr_ratio of its size.
        layout: "image" (B, C, H, W) or "sequence" (..., T, C).

    Raises:
        ValueError: `heads` does not divide `c`, or an option that the variant does not have.
    """

    def __init__(
        self,
        c: Width,
        *,
        heads: Count = 8,
        agents: Annotated[int, AtLeast(1), PerfectSquare()] = 49,
        window: tuple[Count, Count] = (14, 14),
        qkv_bias: bool | None = None,
        variant: Literal["pvt", "swin", "deit"] = "pvt",
        sr_ratio: Count = 1,
        layout: Literal["image", "sequence"] = "image",
    ) -> None:
        super().__init__()
        check.divides(of="c", by="heads", c=c, heads=heads)
        _refuse(variant, sr_ratio, layout)
        self.c, self.heads, self.agents, self.side = c, heads, agents, math.isqrt(agents)
        self.window, self.variant, self.sr_ratio, self.layout = window, variant, sr_ratio, layout
        self.class_tokens = int(variant == "deit")
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
        self.ah_bias = _table(heads, agents, kh)
        self.aw_bias = _table(heads, agents, kw)
        self.ha_bias = _table(heads, h, agents)
        self.wa_bias = _table(heads, w, agents)
        if variant == "deit":
            self.ac_bias = _table(1, heads, agents, 1)
            self.ca_bias = _table(1, heads, 1, agents)
        weight_decay.exempt(self, *dict(self.named_parameters(recurse=False)))  # the tables
        self.register_load_state_dict_pre_hook(_reshape_tables)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "image":
            check.image(x, self.c, self.proj)
            size = x.shape[2], x.shape[3]
            return _as_map(self._attend(x.flatten(2).mT, size), size)
        check.sequence(x, self.c, self.proj)
        return leading.unfold(self._attend(leading.fold(x), self._size(x.shape[-2])), x)

    def macs(self, size: InputSize) -> int:
        c, r, first = self.c, self.sr_ratio, self.class_tokens
        h, w = (size.height, size.width) if self.layout == "image" else self.window
        n, m = h * w, -(-h // r) * -(-w // r)
        reduced = m * self.sr.weight.numel() if r > 1 else 0
        return 2 * (n + m + 2 * first) * c * (c + self.agents) + 9 * n * c + reduced

    def extra_repr(self) -> str:
        return (
            f"c={self.c}, heads={self.heads}, agents={self.agents}, window={self.window}, "
            f"variant={self.variant!r}, sr_ratio={self.sr_ratio}, layout={self.layout!r}"
        )

    def _attend(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if x.shape[0] == 0:  # add a sample, so that the bias gets a gradient, and drop it
            return self._attend(F.pad(x, (0, 0, 0, 0, 0, 1)), size)[:0]
        first, (q, k, v, coarse) = self.class_tokens, self._project(x, size)  # B N C, twice B M C
        a = adaptive_average(_as_map(q[:, first:], size), self.side, self.side).flatten(2).mT
        local = self._local(v[:, first:], coarse, size)
        local = F.pad(local, (0, 0, first, 0)) if first else local
        q, k, v, a = (self._split(t) for t in (q, k, v, a))
        read = agent_attention(q, k, v, a, *self._biases(coarse, size))  # B heads N d
        y: Tensor = self.proj(read.transpose(1, 2).flatten(2) + local)
        return y

    def _project(
        self, x: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Queries, keys, values, and the size of the map that the keys lie on."""
        if self.variant != "pvt":
            q, k, v = self.qkv(x).chunk(3, -1)
            return q, k, v, size
        q, (r, h, w) = self.q(x), (self.sr_ratio, *size)
        if r > 1:
            # Not -w % r: torch.compile does not support remainders of negative symbolic sizes.
            edge = (0, (w + r - 1) // r * r - w, 0, (h + r - 1) // r * r - h)
            reduced = self.sr(F.pad(_as_map(x, size), edge))
            x, size = self.norm(reduced.flatten(2).mT), (reduced.shape[2], reduced.shape[3])
        k, v = self.kv(x).chunk(2, -1)
        return q, k, v, size

    def _split(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.heads, self.c // self.heads)
        return x.reshape(shape).transpose(1, 2)  # B heads T d

    def _biases(self, coarse: tuple[int, int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Added to scores of agents with keys, 1 heads agents M, and queries, 1 heads N agents."""
        key_bias = _resized(self.an_bias, self.ah_bias, self.aw_bias, coarse)
        query_bias = _resized(self.na_bias, self.ha_bias.mT, self.wa_bias.mT, size).mT
        if self.variant != "deit":
            return key_bias, query_bias
        return torch.cat((self.ac_bias, key_bias), 3), torch.cat((self.ca_bias, query_bias), 2)

    def _local(self, v: Tensor, coarse: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """The depthwise branch on the map of values: B N C."""
        values = _as_map(v, coarse)
        if self.sr_ratio > 1:
            whole = [side * self.sr_ratio for side in coarse]
            values = crop(F.interpolate(values, whole, mode="bilinear"), size)
        return torch.flatten(self.dwc(values), 2).mT

    def _size(self, tokens: int) -> tuple[int, int]:
        """H and W of a sequence: those of `window`, or of `window` scaled to this many tokens."""
        first, (h, w) = self.class_tokens, self.window
        size = scaled_grid(tokens - first, self.window)
        if size is None:
            raise ValueError(
                f"x has {tokens} tokens (axis T), not {'1 + ' * first}H W of a map shaped like "
                f"window={self.window}; that takes {first + h * w}, or the window scaled"
            )
        return size


def _resized(grid: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    """grid + rows + columns, each resized to that size, also where it has it: 1 heads agents HW."""
    bias = (
        F.interpolate(grid, size, mode="bilinear")
        + F.interpolate(rows, size[0], mode="linear")[..., None]
        + F.interpolate(columns, size[1], mode="linear")[..., None, :]
    )
    return bias.flatten(2)[None]


def _as_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x.mT.reshape(x.shape[0], x.shape[2], *size)  # B C H W


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def _reshape_tables(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """The authors' tables of rows and columns have two more axes, of length 1."""
    for key, axis in (("ah_bias", 4), ("aw_bias", 3), ("ha_bias", 3), ("wa_bias", 2)):
        table = state.get(prefix + key)
        if isinstance(table, Tensor) and table.ndim == 5:
            state[prefix + key] = table.squeeze(axis).squeeze(0)


def _refuse(variant: str, sr_ratio: int, layout: str) -> None:
    if variant != "pvt" and sr_ratio != 1:
        raise ValueError(
            f"sr_ratio={sr_ratio} must be 1 for variant={variant!r}; variant='pvt' has it"
        )
    if variant == "deit" and layout != "sequence":
        raise ValueError(
            f"layout={layout!r} must be 'sequence' for variant='deit', whose class token comes "
            "first; an image without one takes variant='swin', which has no class token"
        )


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    if config["layout"] == "image":
        return {"x": random(size.batch, config["c"], size.height, size.width)}
    tokens = math.prod(config["window"]) + (config["variant"] == "deit")
    return {"x": random(size.batch, tokens, config["c"])}


register(
    "agent",
    AgentAttention,
    layout=("image", "sequence"),
    family="token",
    example={"c": 64},
    inputs=inputs,
    upstream={"qkv": "qkv"},  # the authors' names are the same
)
