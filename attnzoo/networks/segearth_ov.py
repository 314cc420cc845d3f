"""SegEarth-OV: training-free open-vocabulary segmentation with a CLIP vision tower.

When: images are to be segmented by texts, with CLIP's weights and without training.
Paper: SegEarth-OV: Towards Training-Free Open-Vocabulary Segmentation for Remote Sensing Images,
    Li, Liu, Cao, Bai, Zhou, Meng, Wang, CVPR 2025, arXiv 2410.01768.
Code: likyoo/SegEarth-OV @3e22a969, `segearth_segmentor.py`, `open_clip/transformer.py`.
Math: o = SS(LN(x)) of the tokens x that enter the tower's last block, without its residual and MLP
    (with `residual` u = x + SS(LN(x)), o = u + MLP(LN(u))), SS the block `self_self`;
    z = LN(o) P; the patches' features are upsampled to F, the image as guidance; logits
    l = T F / |F| - global_bias T z_0 / |z_0| of the text T and the class feature z_0. `classes`:
    p = softmax(scale l) over the texts, the largest of each class; the label is the class of the
    largest p, or `background` where that is below `threshold`.
Shapes: `layers=None`: tokens (B, 1 + h w, c), class token first, text (Q, dim) and the image
    (B, 3, h patch, w patch) -> (B, Q, h patch, w patch). `layers=L`: image (B, 3, H, W) and text
    -> (B, Q, H, W). With `classes` probabilities (B, K, H, W) and labels (B, H, W).
Differs: theirs also runs the ordinary last block and drops it, and has no batches: with the
    upsampler they fail, without it class logits of one image reach tokens of others. Theirs resizes
    the table of places only where the number of tokens differs, here wherever the grid does. Their
    demo leaves the upsampler's dropout on; here train mode alone has it. The text is taken as it
    is: make each prompt's embedding unit, and then their mean over prompts.
Cost: a window's tokens N = 1 + h w: last block 4 N c^2 + 4 N^2 c MACs ("qkv"), other blocks
    12 N c^2 + 2 N^2 c, patches (N - 1) 3 patch^2 c, projection N c dim, `jbu_one` of h x w, and
    Q dim a pixel. ViT-B/16 has 86,192,640 parameters, of which the last MLP's do not act.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..blocks.jbu_one import JBUOne
from ..blocks.jbu_stack import JBUStack
from ..ops.memory_format import match_memory_format
from ..ops.precision import downcast, upcast
from ..registry import Inputs, InputSize, Random, register
from ..validation import check
from ..validation.types import Count, Depth, NonNegative, Rate, Width
from . import _clip
from ._clip import Embedding, Layer


class SegEarthOV(nn.Module):
    """Segments images by text: `net(tokens, text, image)`, or `net(image, text)` with `layers`.

    The tokens of transformers' CLIP are `model(image, output_hidden_states=True)
    .hidden_states[-2]`; `clip_head(model)` is this network with the weights of its last block.
    A checkpoint of OpenAI or OpenCLIP and one of SimFeatUp load together, as one state_dict with
    the keys `visual.` and `upsampler.`.

    Args:
        c: width of the tokens.
        heads: attention heads.
        dim: width of the text.
        mode: what is compared with what in the last block; see `self_self`.
        residual: whether the last block keeps its residuals and MLP.
        global_bias: how much of the class feature's logits every pixel loses.
        upsampler: "jbu_one", "jbu_stack", both for patches of 16, or None: logits are resized.
        key_dim: of the upsampler.
        radius: of the upsampler; 2 h and 2 w of a window must be larger.
        dropout: of the upsampler, in train mode; None: the authors' rates.
        patch: side of a patch.
        layers: blocks of the tower; None: the last one alone, of a tower elsewhere.
        image_size: side of the images that the tower's table of places is for.
        act: "quick_gelu" for OpenAI's weights, "gelu" for LAION's.
        crop: side of the windows; 0: the whole image, of sides that are multiples of `patch`.
        stride: pixels between windows; 0: half of `crop`.

    Raises:
        ValueError: an upsampler for other patches than 16, windows further apart than their side,
            or images, tokens and classes that do not go together.
    """

    batch_axes: ClassVar = {"y": None}  # the text is shared by all samples

    def __init__(
        self,
        c: Width,
        *,
        heads: Count = 12,
        dim: Width = 512,
        mode: Literal["qk", "qq", "csa", "qkv", "identity"] = "qkv",
        residual: bool = False,
        global_bias: float = 0.3,
        upsampler: Literal["jbu_one", "jbu_stack"] | None = "jbu_one",
        key_dim: Width = 32,
        radius: Count = 5,
        dropout: Rate | None = None,
        patch: Count = 16,
        layers: Depth | None = None,
        image_size: Count = 224,
        act: Literal["quick_gelu", "gelu"] = "quick_gelu",
        crop: NonNegative = 0,
        stride: NonNegative = 0,
    ) -> None:
        super().__init__()
        if upsampler is not None and patch != 16:
            raise ValueError(
                f"patch={patch}: upsampler={upsampler!r} makes maps 16 times as large, for "
                "patch=16; take upsampler=None, which resizes the logits"
            )
        if stride > crop:
            raise ValueError(f"stride={stride} leaves pixels between windows of crop={crop}")
        self.c, self.dim, self.patch, self.global_bias = c, dim, patch, global_bias
        self.crop, self.stride = crop, stride or max(1, crop // 2)
        self.embedding: Embedding | None = None
        if layers is not None:
            side = check.divides(of="image_size", by="patch", image_size=image_size, patch=patch)
            self.embedding = Embedding(c, patch, side)
        self.blocks = nn.ModuleList(Layer(c, heads, act) for _ in range((layers or 1) - 1))
        self.blocks.append(Layer(c, heads, act, mode, residual))
        self.ln_post = nn.LayerNorm(c)
        self.proj = nn.Parameter(c**-0.5 * torch.randn(c, dim))
        kind = {"jbu_one": JBUOne, "jbu_stack": JBUStack}.get(upsampler or "")
        self.upsampler: Any = None
        if kind is not None:
            self.upsampler = kind(dim, key_dim=key_dim, radius=radius, dropout=dropout)

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
        *,
        classes: Sequence[int] | None = None,
        scale: float = 50.0,
        threshold: float = 0.0,
        background: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits of each text; with `classes`, the class of each text, probabilities and labels."""
        check.sequence(y, self.dim, self.proj, name="y")
        if y.ndim != 2:
            raise ValueError(f"y has shape {tuple(y.shape)}; it is text (Q, {self.dim})")
        known = None if classes is None else _clip.texts_of_classes(classes, len(y), background)
        logits = self._of_image(x, y) if self.embedding else self._of_tokens(x, y, guidance)
        if known is None:
            return logits
        p = (scale * upcast(logits)).softmax(1)
        best = torch.stack([p[:, which].amax(1) for which in known], 1)  # B K H W
        labels = best.argmax(1).masked_fill(best.amax(1) < threshold, background)
        return match_memory_format(best.to(logits.dtype), logits), labels

    def macs(self, size: InputSize) -> int:
        """Multiply-adds of one sample, of the inputs that the registry makes, and five texts."""
        height, width = _clip.image_size_of(size, self.patch, self.embedding is not None)
        if self.embedding is None or not self.crop:
            return self._macs_of_window(height // self.patch, width // self.patch)
        count, sides = 1, []
        for n in (height, width):
            count *= len(list(_clip.starts(n, self.crop, self.stride)))
            sides.append(-(-min(n, self.crop) // self.patch))
        return count * self._macs_of_window(*sides)

    def _macs_of_window(self, rows: int, columns: int) -> int:
        n, c = rows * columns + 1, self.c
        finer = 1 if self.upsampler is None else 256
        texts = 5 * self.dim * ((n - 1) * finer + bool(self.global_bias))
        macs = n * c * self.dim + texts
        for layer in self.blocks:
            block = cast(Layer, layer)
            macs += block.attn.macs(InputSize(steps=n)) + block.residual * 8 * n * c * c
        if self.embedding is not None:
            macs += (n - 1) * self.embedding.conv1.weight.numel()
        if self.upsampler is not None:
            macs += self.upsampler.macs(InputSize(height=rows, width=columns))
        return macs

    def _of_image(self, image: Tensor, text: Tensor) -> Tensor:
        check.image(image, 3, self.proj)
        if not self.crop:
            return self._window(image, text)
        sides = (self.crop, self.stride, self.patch)
        return _clip.slide(lambda window: self._window(window, text), image, *sides)

    def _window(self, image: Tensor, text: Tensor) -> Tensor:
        _clip.check_sides(image, "x", self.patch)
        tokens = cast(Embedding, self.embedding)(image)
        return self._of_tokens(tokens, text, image)

    def _of_tokens(self, x: Tensor, text: Tensor, guidance: Tensor | None) -> Tensor:
        check.sequence(x, self.c, self.proj)
        if guidance is None:
            raise ValueError("guidance is missing: pass the image (B, 3, H, W) of the tokens x")
        check.image(guidance, 3, self.proj, name="guidance")
        _clip.check_sides(guidance, "guidance", self.patch)
        check.same_batch(x=x, guidance=guidance)
        grid = (guidance.shape[2] // self.patch, guidance.shape[3] // self.patch)
        _clip.check_tokens(x, grid, guidance)
        for layer in self.blocks:
            x = layer(x)
        x = self.ln_post(downcast(x, self.ln_post))
        z = x @ self.proj.to(x.dtype)
        features = torch.unflatten(z[:, 1:].mT, 2, grid)
        if self.upsampler is not None:
            features = self.upsampler(features.contiguous(), guidance)
        logits = _clip.text_logits(features, z[:, 0], text, self.global_bias)
        size = guidance.shape[2:]
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return match_memory_format(logits.to(guidance.dtype), guidance)

    def extra_repr(self) -> str:
        return f"c={self.c}, dim={self.dim}, patch={self.patch}"


def clip_head(model: nn.Module, **config: Any) -> SegEarthOV:
    """The network, `layers=None`, with the last block of transformers' CLIP vision model.

    Args:
        model: a `CLIPVisionModelWithProjection`.
        **config: keywords of the network; the upsampler keeps its random weights.
    """
    settings: Any = model.config
    net = SegEarthOV(
        settings.hidden_size,
        heads=settings.num_attention_heads,
        dim=settings.projection_dim,
        patch=settings.patch_size,
        act="quick_gelu" if settings.hidden_act == "quick_gelu" else "gelu",
        **config,
    )
    found = _clip.last_block(model)
    own = net.state_dict()
    net.load_state_dict(own | {key: found[key] for key in found if key in own})
    return net


def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
    """An image and five texts; or an image of four times the size, its tokens, and five texts."""
    patch, whole = config["patch"], config["layers"] is not None
    height, width = _clip.image_size_of(size, patch, whole)
    image, text = random(size.batch, 3, height, width), random(5, config["dim"])
    if whole:
        return {"x": image, "y": text}
    tokens = 1 + (height // patch) * (width // patch)
    return {"x": random(size.batch, tokens, config["c"]), "y": text, "guidance": image}


register(
    "segearth_ov",
    SegEarthOV,
    layout="image",
    family="network",
    example={"c": 12, "heads": 3, "dim": 8, "key_dim": 4, "radius": 1, "dropout": 0.0},
    input_size=InputSize(height=12, width=16),
    inputs=inputs,
    upstream=[_clip.clip_keys(*to) for to in (("*", "*"), ("31", "0"), ("23", "0"), ("11", "0"))],
)
