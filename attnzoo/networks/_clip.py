"""The vision tower of CLIP, windows over an image, and logits of text."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks.self_self import Mode, SelfSelf, remove_global_bias
from ..ops.precision import autocast_disabled, downcast, upcast
from ..ops.weight_decay import exempt
from ..registry import InputSize
from ..validation.messages import shown


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()


class Layer(nn.Module):
    """Attention and MLP, each on the normalized stream; without `residual` the attention alone."""

    def __init__(self, c: int, heads: int, act: str, mode: Mode = "qk", residual: bool = True):
        super().__init__()
        self.residual = residual
        self.ln_1 = nn.LayerNorm(c)
        self.attn = SelfSelf(c, heads=heads, mode=mode)
        if residual:
            self.ln_2 = nn.LayerNorm(c)
            self.mlp = nn.Sequential(
                nn.Linear(c, 4 * c),
                nn.GELU() if act == "gelu" else QuickGELU(),
                nn.Linear(4 * c, c),
            )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attn(self.ln_1(downcast(x, self.ln_1)))
        if not self.residual:
            return y
        x = x + y
        out: Tensor = x + self.mlp(self.ln_2(downcast(x, self.ln_2)))
        return out


class Embedding(nn.Module):
    """Patches of an image as tokens, the class token first, with places and a norm."""

    def __init__(self, c: int, patch: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv1 = nn.Conv2d(3, c, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(c**-0.5 * torch.randn(c))
        self.positional_embedding = nn.Parameter(c**-0.5 * torch.randn(1 + side * side, c))
        exempt(self, "class_embedding", "positional_embedding")
        self.ln_pre = nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 1 + h w, c)."""
        patches = self.conv1(x)
        tokens = patches.flatten(2).mT
        first = self.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        places = self._places(patches.shape[2], patches.shape[3]).to(tokens.dtype)
        joined = torch.cat((first, tokens), 1) + places
        out: Tensor = self.ln_pre(downcast(joined, self.ln_pre))
        return out

    def _places(self, rows: int, columns: int) -> Tensor:
        """The table of h x w patches, resized by OpenCLIP's factors, a tenth too large."""
        if (rows, columns) == (self.side, self.side):
            return self.positional_embedding
        own, table = self.positional_embedding[:1], self.positional_embedding[1:]
        grid = torch.unflatten(table.mT, 1, (self.side, self.side))[None]
        factors = [(n + 0.1) / self.side for n in (rows, columns)]
        resized = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
        return torch.cat((own, resized[0].flatten(1).mT))


def slide(
    fn: Callable[[Tensor], Tensor], image: Tensor, crop: int, stride: int, patch: int
) -> Tensor:
    """The mean of what `fn` gives for the windows of (B, 3, H, W) that cover each pixel.

    `fn` takes windows padded with zeros to multiples of `patch` and returns maps of their size. The
    last window of an axis is shifted back to end at the border.
    """
    height, width = image.shape[2:]
    found: list[Tensor] = []
    count = image.new_zeros(1, 1, height, width)
    for y in starts(height, crop, stride):
        for x in starts(width, crop, stride):
            window = image[:, :, y : y + crop, x : x + crop]
            rows, columns = window.shape[2:]
            top, left = -rows % patch // 2, -columns % patch // 2
            border = (left, -columns % patch - left, top, -rows % patch - top)
            inner = fn(F.pad(window, border))[:, :, top : top + rows, left : left + columns]
            around = (x, width - x - columns, y, height - y - rows)
            found = [sum(found, F.pad(inner, around))]
            count = count + F.pad(image.new_ones(1, 1, rows, columns), around)
    return found[0] / count


def starts(size: int, crop: int, stride: int) -> Iterator[int]:
    """Where the windows of an axis begin."""
    for i in range(-(-max(size - crop, 0) // stride) + 1):
        yield max(min(i * stride + crop, size) - crop, 0)


def text_logits(features: Tensor, cls: Tensor, text: Tensor, global_bias: float) -> Tensor:
    """(B, D, H, W), class features (B, D) and text (Q, D) -> (B, Q, H, W)."""
    with autocast_disabled(features):
        f, z, t = (upcast(v) for v in (features, cls, text))
        products = f.flatten(2).mT @ t.mT  # B HW Q
        logits = products / torch.linalg.vector_norm(f, dim=1).flatten(1)[..., None]
        if global_bias:
            of_class = z @ t.mT / torch.linalg.vector_norm(z, dim=1, keepdim=True)
            logits = remove_global_bias(logits, of_class, global_bias, normalize=False)
        return torch.unflatten(logits.mT, 2, features.shape[2:]).to(features.dtype)


def image_size_of(size: InputSize, patch: int, whole: bool) -> tuple[int, int]:
    """Sides of the image, multiples of `patch`; of tokens alone, the size is a quarter of it."""
    height, width = (
        max(1, n * (1 if whole else 4) // patch) * patch for n in (size.height, size.width)
    )
    return height, width


def check_tokens(x: Tensor, grid: tuple[int, int], guidance: Tensor) -> None:
    """`x` has a class token and one for each patch of the guidance."""
    if x.ndim != 3 or x.shape[1] != 1 + grid[0] * grid[1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; for a guidance of {guidance.shape[2]} x "
            f"{guidance.shape[3]} it is (B, 1 + {grid[0]} * {grid[1]}, {x.shape[-1]}), class token "
            "first"
        )


def check_sides(image: Tensor, name: str, patch: int) -> None:
    """Both sides are multiples of the patch."""
    for axis, n in zip("HW", image.shape[2:], strict=True):
        if n % patch:
            raise ValueError(
                f"{name} has {axis}={n}, no multiple of patch={patch}; the nearest are "
                f"{max(1, n // patch) * patch} and {(n // patch + 1) * patch}: resize it, or build "
                "with layers and crop, which pads windows"
            )


def texts_of_classes(classes: Sequence[int], queries: int, background: int) -> list[list[int]]:
    """The texts of each class."""
    count = max(classes, default=-1) + 1
    found = [[i for i, of in enumerate(classes) if of == k] for k in range(count)]
    if len(classes) != queries or not all(found) or min(classes, default=0) < 0:
        raise ValueError(
            f"classes={shown(list(classes))} must give each of the {queries} texts its class, from "
            "0 without gaps"
        )
    if not 0 <= background < count:
        raise ValueError(f"background={background} must be a class, 0 to {count - 1}")
    return found


def clip_keys(block: str, ours: str) -> dict[str, str | None]:
    """The keys of OpenCLIP and SimFeatUp, of all blocks ("*"), or for a last block alone."""
    tower, parts = "visual.transformer.resblocks", ("attn.out_proj", "ln_1", "ln_2")
    names = {f"attn.in_proj_{end}": f"attn.in_proj.{end}" for end in ("weight", "bias")}
    names |= {"mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2"} | {part: part for part in parts}
    keys: dict[str, str | None] = {f"visual.{key}": key for key in ("ln_post", "proj")}
    keys |= {f"{tower}.{block}.{key}": f"blocks.{ours}.{own}" for key, own in names.items()}
    idle = {f"{tower}.*.{key}": None for key in ("mlp", "ln_2.weight", "ln_2.bias")}
    first = ("conv1", "class_embedding", "positional_embedding", "ln_pre")
    if block == "*":
        return {**keys, **idle, **{f"visual.{key}": f"embedding.{key}" for key in first}}
    return {**keys, f"{tower}.*": None, **{f"visual.{key}": None for key in first}}


def last_block(model: nn.Module) -> dict[str, Tensor]:
    """The last block, norm and projection of transformers' CLIP, under the network's names."""
    state = {key.removeprefix("vision_model."): v for key, v in model.state_dict().items()}
    settings: Any = model.config
    last = f"encoder.layers.{settings.num_hidden_layers - 1}"
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    found = {"proj": state["visual_projection.weight"].T}
    for end in ("weight", "bias"):
        qkv = [state[f"{last}.self_attn.{part}_proj.{end}"] for part in "qkv"]
        found[f"blocks.0.attn.in_proj.{end}"] = torch.cat(qkv)
        found[f"blocks.0.attn.out_proj.{end}"] = state[f"{last}.self_attn.out_proj.{end}"]
        found[f"ln_post.{end}"] = state[f"post_layernorm.{end}"]
        for ours, theirs in names.items():
            found[f"blocks.0.{ours}.{end}"] = state[f"{last}.{theirs}.{end}"]
    return found
