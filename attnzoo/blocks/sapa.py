"""SAPA: each pixel of the guidance attends to the window around its pixel of the source.

When: decoder features are upsampled and the encoder's map of the larger size is at hand.
Paper: SAPA: Similarity-Aware Point Affiliation for Feature Upsampling, Lu et al., NeurIPS 2022,
    arXiv 2209.12866.
Code: poppinace/sapa @5530ef8b, `SAPA.py` (`SAPA`) and `SAPAExp.py` (`SAPAExp`).
Math: k = K LN(x), q = Q LN(y) of source x and guidance y; for pixel (i, j) the window K x K,
    K = kernel, around (i // scale, j // scale), out = sum softmax(q . k) v, v = x (V LN(x) with
    `v_embed`). q_mode "cat": q = Q [LN(y), x]; "gate": q = a Qy LN(y) + (1 - a) Qx x,
    a = sigmoid(gate LN(x)), x the source pixel that the pixel lies in.
Shapes: source (B, C, H, W), guidance (B, g, s H, s W) -> (B, c_out, s H, s W).
Differs: the paper's SAPA-B is "encoder_only", SAPA-G "gate". As in the authors' code, scores are
    not divided by sqrt(dim), and keys and values outside the map are zeros that keep their weights:
    borders fade. Scores are float32 for half precision. Their operators run only on CUDA.
Cost: with g = guidance and e = dim, parameters 2 g + 2 c + e (g + c) + 2 e; MACs
    s^2 H W (g e + K^2 e + K^2 c) + H W c e; the other modes add their projections.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autograd.windows import window_dots, window_sum
from ..ops.memory_format import match_memory_format
from ..ops.precision import autocast_disabled, downcast, upcast
from ..ops.windows import fine_map
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Count, Odd, Width


def local_attention(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    """S queries per pixel attend to the zero-padded window around it.

    q (B, e, S, H, W), k (B, e, H, W), v (B, C, H, W) -> (B, C, S, H, W).
    """
    pad = (kernel // 2,) * 4
    with autocast_disabled(q):
        energies = window_dots(q[:, None], F.pad(k, pad)[:, None], kernel)  # B 1 K K S H W
        weights = energies.flatten(2, 3).softmax(2).view_as(energies)
        return window_sum(F.pad(v, pad)[:, None], weights)[:, 0]


class SAPA(nn.Module):
    """Upsampling of `source` (B, C, H, W) to `guidance` (B, g, scale H, scale W).

    Args:
        c: channels of the source.
        guidance: channels of the guidance.
        scale: height and width of the guidance, divided by those of the source.
        kernel: side of the window that a pixel attends to.
        dim: width of queries and keys.
        bias: whether the projections have biases.
        q_mode: what queries are computed from: "encoder_only" (the guidance), "cat" (guidance and
            source) or "gate" (a mixture of the two, gated by the source).
        v_embed: whether the values are projected.
        c_out: channels out; None for `c`; another number projects the values.
    """

    def __init__(
        self,
        c: Width,
        *,
        guidance: Width = 3,
        scale: Count = 2,
        kernel: Odd = 5,
        dim: Width = 64,
        bias: bool = True,
        q_mode: Literal["encoder_only", "cat", "gate"] = "encoder_only",
        v_embed: bool = False,
        c_out: Width | None = None,
    ) -> None:
        super().__init__()
        self.c, self.guidance, self.scale = c, guidance, scale
        self.kernel, self.dim, self.q_mode = kernel, dim, q_mode
        self.norm_y, self.norm_x = nn.LayerNorm(guidance), nn.LayerNorm(c)
        if q_mode == "gate":
            self.qy, self.qx = nn.Linear(guidance, dim, bias), nn.Linear(c, dim, bias)
            self.gate = nn.Linear(c, 1, bias)
        else:
            self.q = nn.Linear(guidance + c * (q_mode == "cat"), dim, bias)
        self.k = nn.Linear(c, dim, bias)
        embeds = v_embed or c_out not in (None, c)
        self.v = nn.Linear(c, c_out or c, bias) if embeds else None
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, source: Tensor, guidance: Tensor) -> Tensor:
        self._check(source, guidance)
        last = source.permute(0, 2, 3, 1)  # B H W C
        x = self.norm_x(downcast(last, self.norm_x))
        q = self._queries(last, x, guidance)  # B H s W s e
        q = q.permute(0, 5, 2, 4, 1, 3).flatten(2, 3)  # B e ss H W
        v = source if self.v is None else self.v(x).permute(0, 3, 1, 2)
        k = self.k(x).permute(0, 3, 1, 2)
        y = local_attention(upcast(q), upcast(k), upcast(v).to(upcast(q).dtype), self.kernel)
        y = fine_map(y, self.scale).to(source.dtype)
        return match_memory_format(y, source)

    def _queries(self, source: Tensor, x: Tensor, guidance: Tensor) -> Tensor:
        """Queries by pixel (h, w) of the source and position within it: B H s W s e.

        source, x: the source and its norm, B H W C.
        """
        s = self.scale
        y = self.norm_y(downcast(guidance, self.norm_y).permute(0, 2, 3, 1))
        y = y.unflatten(2, (-1, s)).unflatten(1, (-1, s))  # B H s W s g
        own = source[:, :, None, :, None]  # B H 1 W 1 C
        if self.q_mode == "gate":
            a = self.gate(x)[:, :, None, :, None].sigmoid()
            gated: Tensor = a * self.qy(y) + (1 - a) * self.qx(own)
            return gated
        if self.q_mode == "cat":
            y = torch.cat((y, own.expand(*y.shape[:-1], -1)), -1)
        q: Tensor = self.q(y)
        return q

    def _check(self, source: Tensor, guidance: Tensor) -> None:
        check.image(source, self.c, self.k, name="source")
        check.image(guidance, self.guidance, self.k, name="guidance")
        check.same_batch(source=source, guidance=guidance)
        h, w = source.shape[2] * self.scale, source.shape[3] * self.scale
        if guidance.shape[2] != h or guidance.shape[3] != w:
            raise ValueError(
                f"guidance has shape {tuple(guidance.shape)}; with scale={self.scale} and a source "
                f"of shape {tuple(source.shape)} it must be {h} x {w}: resize it"
            )

    def macs(self, size: InputSize) -> int:
        of_source = [self.k, self.v, getattr(self, "gate", None)]
        of_both = [getattr(self, name, None) for name in ("q", "qy", "qx")]
        once, often = (
            sum(layer.weight.numel() for layer in layers if layer is not None)
            for layers in (of_source, of_both)
        )
        c_out = self.c if self.v is None else self.v.weight.shape[0]
        often += self.kernel**2 * (self.dim + c_out)
        return size.height * size.width * (once + self.scale**2 * often)

    def extra_repr(self) -> str:
        return f"c={self.c}, scale={self.scale}, kernel={self.kernel}, q_mode={self.q_mode!r}"


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    b, h, w, s = size.batch, size.height, size.width, config["scale"]
    guidance = random(b, config["guidance"], s * h, s * w)
    return {"source": random(b, config["c"], h, w), "guidance": guidance}


register(
    "sapa",
    SAPA,
    layout="upsampler",
    family="upsampler",
    example={"c": 32, "guidance": 4, "dim": 16},
    inputs=inputs,
)
