"""TSViT: a transformer over the dates of each patch, then one over the patches for each class.

When: each pixel of a satellite series is to be classified and the images have a fixed size.
Paper: ViTs for SITS: Vision Transformers for Satellite Image Time Series, Tarasiou, Chavez,
    Zafeiriou, CVPR 2023, arXiv 2301.04944.
Code: michaeltrs/DeepSatModels @782f736, `models/TSViT/TSViTdense.py` class `TSViT`, `module.py`.
Math: per patch and date t = W patch + b + E[day]; for each patch z = Transformer([k_1..k_K, t_1..
    t_T]) with K = num_classes learned tokens, of which the first K are kept; for each class the
    patches z + s, with learned places s, go through a second transformer, shared by all classes;
    scores of the p x p pixels of a patch = W_h LN(z). Transformer: x = x + W_o attention(LN(x)),
    x = x + W_2 gelu(W_1 LN(x)), `depth` times, then LN; queries, keys and values have no bias.
Shapes: (B, T, c, image_size, image_size) and the days of the year `positions` (B, T), 0 to 365 ->
    (B, num_classes, image_size, image_size).
Differs: at this commit, and for every published checkpoint, scores of pixels are laid out patch by
    patch into the rows of the output, away from their places: `unpatchify=False`. The default puts
    them in place, as the authors' later code does. Theirs reads days from a channel of x and
    multiplies a one-hot code; here the row is looked up, so that days keep their precision under
    autocast. `key_padding_mask` leaves dates out, which theirs cannot. The last layer over time
    computes the tokens that are kept, no others.
Cost: i = heads dim_head, r = mlp_ratio, P patches, D = dim: a layer on N sequences of L tokens
    needs N (L (4 D i + 2 r D^2) + 2 L^2 i) MACs; with P T p^2 c D + 366 T D, the layers on
    (P, K + T) and (K, P) and K P D p^2 that makes 12.47 G per sample at the published setting
    (c=10, T=60), of 1,657,476 parameters.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..autograd import needs_reference_form
from ..ops.weight_decay import exempt
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Count, Depth, Positive, Rate, Width
from ._transformer import Transformer

DAYS = 366


class TSViT(nn.Module):
    """TSViT for segmentation: `net(x, positions=days)`.

    Args:
        c: channels of x, without a channel of dates.
        image_size: rows and columns of x; a multiple of `patch_size`.
        patch_size: side of a patch.
        num_classes: classes, each with a token of its own.
        dim: width of a token.
        temporal_depth: layers over the dates.
        spatial_depth: layers over the patches.
        heads: attention heads.
        dim_head: width of a head; `heads * dim_head` may differ from `dim`.
        mlp_ratio: hidden width of the MLPs per width of a token.
        dropout: behind the places, the attention and both layers of the MLPs.
        unpatchify: False: the pixel order of the published checkpoints.

    Raises:
        ValueError: `patch_size` does not divide `image_size`, x is of another size, or positions
            are missing or no days of a year.
    """

    def __init__(
        self,
        c: Width,
        *,
        image_size: Count = 24,
        patch_size: Count = 2,
        num_classes: Count = 19,
        dim: Width = 128,
        temporal_depth: Depth = 4,
        spatial_depth: Depth = 4,
        heads: Count = 4,
        dim_head: Count = 32,
        mlp_ratio: Positive = 4,
        dropout: Rate = 0.0,
        unpatchify: bool = True,
    ) -> None:
        super().__init__()
        side = check.divides(
            of="image_size", by="patch_size", image_size=image_size, patch_size=patch_size
        )
        self.c, self.image_size, self.patch_size = c, image_size, patch_size
        self.num_classes, self.unpatchify = num_classes, unpatchify
        self.embed = nn.Linear(patch_size**2 * c, dim)
        self.day_weight = nn.Parameter(torch.empty(dim, DAYS).uniform_(-(DAYS**-0.5), DAYS**-0.5))
        self.day_bias = nn.Parameter(torch.empty(dim).uniform_(-(DAYS**-0.5), DAYS**-0.5))
        self.class_tokens = nn.Parameter(torch.randn(1, num_classes, dim))
        self.places = nn.Parameter(torch.randn(1, side**2, dim))
        exempt(self, "day_weight", "class_tokens", "places")
        layer = (dim, heads, dim_head, int(dim * mlp_ratio), dropout)
        self.temporal = Transformer(temporal_depth, *layer)
        self.spatial = Transformer(spatial_depth, *layer)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, patch_size**2))

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        check.image_series(x, self.c, self.class_tokens)
        self._check_size(x)
        padded = check.padding_mask(key_padding_mask, x.shape[:2], x)
        patches = self._patches(x)  # B P T p^2c
        tokens = self.embed(patches) + self._dates(positions, x)[:, None]
        temporal = self._over_time(tokens, padded)  # B P K D
        places = temporal.transpose(1, 2) + self.places  # B K P D
        spatial = self.spatial(self.dropout(places).flatten(0, 1))
        scores = self.head(spatial).view(
            x.shape[0], self.num_classes, patches.shape[1], self.patch_size**2
        )
        return self._image(scores).to(x.dtype)

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample, the product with the one-hot dates included."""
        patches, dim = self.places.shape[1:]
        ends = patches * size.steps * self.embed.weight.numel()
        ends += size.steps * self.day_weight.numel()
        ends += self.num_classes * patches * dim * self.patch_size**2
        over_time = self.temporal.macs(patches, self.num_classes + size.steps)
        return ends + over_time + self.spatial.macs(self.num_classes, patches)

    def _patches(self, x: Tensor) -> Tensor:
        """(B, T, c, H, W) to (B, P, T, p p c)."""
        b, t, c = x.shape[:3]
        p, side = self.patch_size, self.image_size // self.patch_size
        split = x.reshape(b, t, c, side, p, side, p)
        return split.permute(0, 3, 5, 1, 4, 6, 2).reshape(b, side * side, t, p * p * c)

    def _dates(self, positions: Tensor | None, x: Tensor) -> Tensor:
        """The codes (B, T, D) of the days, looked up in the weight."""
        if positions is None:
            raise ValueError(
                "positions is missing: pass the day of the year of each date, 0 to 365, as a "
                f"tensor of shape {tuple(x.shape[:2])}"
            )
        days = check.per_step(positions, x.shape[:2], x, name="positions")
        if days.is_floating_point() or days.is_complex() or days.dtype == torch.bool:
            raise TypeError(
                f"positions is {days.dtype}; it must be whole numbers, the days of the year: take "
                "positions.long() before any cast to half precision, which mixes days up"
            )
        look = days.device.type == "cpu" and not needs_reference_form(days)  # no wait on CUDA
        if look and ((days < 0) | (days >= DAYS)).any():
            raise ValueError(
                f"positions has days from {int(days.min())} to {int(days.max())}; they must be "
                f"days of the year, 0 to {DAYS - 1}: take positions % {DAYS}"
            )
        return F.embedding(days, self.day_weight.t()) + self.day_bias

    def _over_time(self, tokens: Tensor, padded: Tensor | None) -> Tensor:
        """(B, P, T, D) to the class tokens (B, P, K, D)."""
        b, patches, _, dim = tokens.shape
        classes = self.class_tokens.expand(b * patches, -1, -1).to(tokens.dtype)
        series = torch.cat((classes, tokens.flatten(0, 1)), 1)  # BP K+T D
        if padded is not None:
            shown = padded.new_zeros(b, self.num_classes)
            padded = torch.cat((shown, padded), 1).repeat_interleave(patches, 0)[:, None, None]
        kept: Tensor = self.temporal(series, padded, self.num_classes)
        return kept.view(b, patches, self.num_classes, dim)

    def _image(self, scores: Tensor) -> Tensor:
        """(B, K, P, p^2) to (B, K, H, W), in place or in the published order."""
        p, side = self.patch_size, self.image_size // self.patch_size
        if self.unpatchify:
            scores = scores.view(*scores.shape[:2], side, side, p, p).transpose(3, 4)
        image: Tensor = scores.reshape(*scores.shape[:2], self.image_size, self.image_size)
        return image

    def _check_size(self, x: Tensor) -> None:
        if tuple(x.shape[3:]) != (self.image_size, self.image_size):
            raise ValueError(
                f"x is {x.shape[3]} x {x.shape[4]}; the network has places for image_size="
                f"{self.image_size}: cut x into tiles of that size, or build with another"
            )

    def extra_repr(self) -> str:
        return f"c={self.c}, image_size={self.image_size}, num_classes={self.num_classes}"


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    side = config["image_size"]
    days = (17 * torch.arange(size.steps) % DAYS).expand(size.batch, -1)
    return {"x": random(size.batch, size.steps, config["c"], side, side), "positions": days}


_LAYERS = {"0.norm": "norm1", "0.fn.to_qkv": "qkv", "0.fn.to_out.0": "proj"}
_LAYERS |= {"1.norm": "norm2", "1.fn.net.0": "fc1", "1.fn.net.3": "fc2"}

register(
    "tsvit",
    TSViT,
    layout="image_series",
    family="network",
    example={"c": 2, "image_size": 4, "num_classes": 3, "dim": 8, "temporal_depth": 2}
    | {"spatial_depth": 1, "heads": 2, "dim_head": 4, "mlp_ratio": 2},
    input_size=InputSize(steps=6, height=4, width=4),
    inputs=inputs,
    upstream={
        "temporal_token": "class_tokens",
        "space_pos_embedding": "places",
        "to_patch_embedding.1": "embed",
        "to_temporal_embedding_input.weight": "day_weight",
        "to_temporal_embedding_input.bias": "day_bias",
        "mlp_head": "head",
        **{
            f"{theirs}_transformer.layers.*.{layer}": f"{ours}.layers.*.{own}"
            for theirs, ours in (("temporal", "temporal"), ("space", "spatial"))
            for layer, own in _LAYERS.items()
        },
        "temporal_transformer.norm": "temporal.norm",
        "space_transformer.norm": "spatial.norm",
    },
)
