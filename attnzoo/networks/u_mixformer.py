"""U-MixFormer's decoder: mix-attention at every stage of a pyramid, deepest first.

When: a pyramid of any encoder needs a light decoder for semantic segmentation.
Paper: U-MixFormer: UNet-like Transformer with Mix-Attention for Efficient Semantic Segmentation,
    Yeom, von Klitzing, WACV 2025, arXiv 2312.06272.
Code: julian-klitzing/u-mixformer @0d362182, `mmseg/models/decode_heads/umixformer_head.py` class
    `APFormerHead2`; "city": `umixformer_head_city.py` class `APFormerHeadCity`.
Math: from the deepest map e_n to the first, d_s = mix_attention(e_s, [d_n .. d_{s+1}, e_s .. e_1])
    with its norms and MLP (`block=True`); z = relu(BN(sum_s resize(W_s d_s))), W_s the columns of
    linear_fuse that belong to d_s; scores = linear_pred(dropout(z)).
Shapes: a list of maps (B, dims[i], H_i, W_i), shallow first, for which ceil(H_i / pools[i]) and
    ceil(W_i / pools[i]) agree -> (B, num_classes, H_1, W_1), or of `size`.
Differs: theirs resizes all d_s, joins them and multiplies by linear_fuse at the first map's size;
    a 1 x 1 convolution without bias commutes with the resize, so that here each map is multiplied
    at its own size. Theirs pools every map for every stage; here each is pooled once. `dims`,
    `heads` and `pools` are all in the order of the maps; theirs has heads and pools reversed.
    Weights of theirs that never act (39 % of the smallest head) are left out, their keys ignored.
Cost: parameters and MACs are those of the mix-attentions; with D = sum dims and N_1 = H_1 W_1,
    linear_fuse has D dim and 2 dim parameters, linear_pred dim K + K; theirs multiplies
    N_1 (D dim + dim K), here it is sum_s N_s C_s dim + N_1 dim K.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks.mix_attention import MixAttention, Variant, average
from ..ops.folding import is_pointwise
from ..ops.memory_format import match_memory_format
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.messages import shown
from ..validation.types import Counts, Positive, Rate, Width


class Fuse(nn.Module):
    """linear_fuse: a 1 x 1 convolution of all maps, deepest first, norm and ReLU."""

    def __init__(self, c: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, dim, 1, bias=False)
        self.bn = nn.BatchNorm2d(dim)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of any sizes, the last the largest, to (B, dim, H, W) of the last."""
        size = maps[-1].shape[2:]
        check.batch_norm(self.bn, maps[-1].shape[0] * size[0] * size[1], maps[-1])
        if is_pointwise(self.conv):
            # split as a matrix, or the gradient would have other strides than the weight
            columns = torch.split(self.conv.weight.flatten(1), [m.shape[1] for m in maps], 1)
            parts = [F.conv2d(m, w[:, :, None, None]) for m, w in zip(maps, columns, strict=True)]
            fused = parts[-1]
            for part in parts[:-1]:
                fused = fused + _resize(part, size)
        else:
            fused = self.conv(torch.cat([_resize(m, size) for m in maps], 1))
        out: Tensor = self.bn(fused).relu()
        return out


class Stage(MixAttention):
    """MixAttention, also on maps that `average` has pooled already."""

    def forward(self, x: Tensor, features: Sequence[Tensor], *, pooled: bool = False) -> Tensor:
        return self.mix(x, features) if pooled else super().forward(x, features)


class UMixFormer(nn.Module):
    """U-MixFormer's decoder: `net([e_1, e_2, e_3, e_4])` gives scores at the first map's size.

    The maps are those of timm's `features_only` networks, or of transformers' `SegformerModel`
    (`hidden_states` of the four stages), the authors' encoder: its arithmetic is theirs when every
    LayerNorm's eps is 1e-6, not its default of 1e-5.

    Args:
        dims: channels of each map, shallow first.
        num_classes: channels of the scores.
        heads: attention heads of each map's stage; each divides its channels.
        pools: side of the cells over which each map is averaged to the deepest one's size.
        dim: channels of the fused map.
        mlp_ratio: hidden channels of the MLPs per channel.
        dropout: rate at which whole channels of the fused map are dropped.
        drop_path: rate at which a sample skips a branch of a stage.
        variant: "ade" or "city", the authors' forms for ADE20K and Cityscapes; see mix_attention.

    Raises:
        ValueError: heads or pools that are not one per map, heads that do not divide channels, or
            maps that do not pool to one size.
    """

    def __init__(
        self,
        dims: Counts,
        *,
        num_classes: Width = 150,
        heads: Counts = (1, 2, 5, 8),
        pools: Counts = (8, 4, 2, 1),
        dim: Width = 128,
        mlp_ratio: Positive = 4,
        dropout: Rate = 0.1,
        drop_path: Rate = 0.1,
        variant: Variant = "ade",
    ) -> None:
        super().__init__()
        for name, values in (("heads", heads), ("pools", pools)):
            if len(values) != len(dims):
                raise ValueError(
                    f"{name}={shown(values)} has {len(values)} items, dims={shown(dims)} "
                    f"{len(dims)}; give one for each map, shallow first"
                )
        self.dims = dims
        self.cells = tuple(2 * pool for pool in pools) if variant == "city" else pools
        self.stages = nn.ModuleList(
            Stage(
                c,
                dims=dims[::-1],
                pools=pools[::-1],
                heads=h,
                block=True,
                mlp_ratio=mlp_ratio,
                drop_path=drop_path,
                variant=variant,
            )
            for c, h in zip(dims, heads, strict=True)
        )
        self.linear_fuse = Fuse(sum(dims), dim)
        self.dropout = nn.Dropout2d(dropout)
        self.linear_pred = nn.Conv2d(dim, num_classes, 1)

    def forward(self, features: Sequence[Tensor], *, size: tuple[int, int] | None = None) -> Tensor:
        """Scores at the size of the first map, or resized bilinearly to `size` (H, W)."""
        check.listed(features, len(self.dims), name="features")
        first = features[0]
        check.image(first, self.dims[0], self.linear_pred, name="features[0]")
        check.pyramid(features, self.dims, self.cells, first)
        pooled = [average(x, cell) for x, cell in zip(features, self.cells, strict=True)]
        decoded: list[Tensor] = []
        for i in range(len(features) - 1, -1, -1):
            decoded.append(self.stages[i](features[i], pooled[::-1], pooled=True))
            pooled[i] = average(decoded[-1], self.cells[i])
        scores = self.linear_pred(self.dropout(self.linear_fuse(decoded)))
        return match_memory_format(scores if size is None else _resize(scores, size), first)

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample whose first map has the given size, as the authors count."""
        pixels, conv = size.height * size.width, self.linear_fuse.conv
        grids, largest = _grids(size, self.cells), max(self.cells)
        mixed = (-(-size.height // largest), -(-size.width // largest))
        stages = sum(
            cast(MixAttention, stage).products(grid, mixed)
            for stage, grid in zip(self.stages, grids, strict=True)
        )
        return stages + pixels * (conv.weight.numel() + self.linear_pred.weight.numel())

    def extra_repr(self) -> str:
        return f"dims={self.dims}"


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


def _grids(size: InputSize, cells: Sequence[int]) -> list[tuple[int, int]]:
    """Sizes of maps whose cells, as many as those of a first map of `size`, are whole."""
    return [
        (-(-size.height * cell // cells[0]), -(-size.width * cell // cells[0])) for cell in cells
    ]


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    """Maps that halve the size of the first, as encoders do."""
    grids = _grids(size, config["pools"])
    pairs = zip(config["dims"], grids, strict=True)
    return {"features": [random(size.batch, c, *grid) for c, grid in pairs]}


_IDLE = {"ade": ("sr", "norm"), "city": ("sr2",)}

register(
    "u_mixformer",
    UMixFormer,
    layout="features",
    family="network",
    example={
        "dims": (4, 6),
        "num_classes": 3,
        "heads": (1, 2),
        "pools": (2, 1),
        "dim": 6,
        "dropout": 0.0,
        "drop_path": 0.0,
    },
    input_size=InputSize(height=8, width=8),
    inputs=inputs,
    upstream=[
        {
            "conv_seg": None,
            **{f"attn_c{i + 1}": f"stages.{i}.attn" for i in range(4)},
            **{f"attn_c{i + 1}.mlp.dwconv.dwconv": f"stages.{i}.attn.mlp.dwconv" for i in range(4)},
            **{f"cat_key{4 - i}": f"stages.{i}.cat_key" for i in range(4)},
            **{f"attn_c*.attn.{layer}": None for layer in layers},
        }
        for layers in _IDLE.values()
    ],
)
