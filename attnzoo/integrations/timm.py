"""Blocks as attention layers of timm's networks, and the networks that take them."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..registry import build, find
from ..validation import messages


def attn_layer(name: str, **config: Any) -> Callable[..., nn.Module]:
    """A constructor of the block to pass to timm as `attn_layer` or `se_layer`.

    timm calls it with the number of channels. Further keywords that timm's builders pass
    (`rd_ratio`, `act_layer`, ...) are ignored, except `device` and `dtype`.

    The initialization of timm's EfficientNets requires a bias in every linear layer: pass
    `bias=True` for `se` and `qkv_bias=True` for `agent` there.

    Raises:
        ValueError: no such block, or one that takes no image.
    """
    entry = find(name)
    if "image" not in entry.layouts:
        raise ValueError(
            f"{name!r} takes {', '.join(entry.layouts)}; timm's layers take an image: "
            "see attnzoo.names(layout='image')"
        )

    def layer(c: int, *, device: Any = None, dtype: Any = None, **_: Any) -> nn.Module:
        return build(name, c, device=device, dtype=dtype, **config)

    return layer


class CompatibleModel(NamedTuple):
    """A network of timm that can be built with a block."""

    model: str
    call: str  # the keyword of timm.create_model
    blocks: int
    parameters: int  # of the blocks


def compatible_models(name: str, pattern: str = "*", **config: Any) -> Iterator[CompatibleModel]:
    """Networks of timm whose names match a glob and that can be built with a block.

    Each one is built, on the meta device and without weights. Networks whose widths the block
    does not allow are left out, as are those without an attention layer to replace.

    Raises:
        ValueError: no such block, one that takes no image, or a glob that matches nothing.
    """
    import timm

    layer, kind = attn_layer(name, **config), find(name).cls
    models = timm.list_models(pattern)
    if not models:
        near = messages.nearest(pattern, timm.list_models())
        raise ValueError(f"models={pattern!r} matches no network of timm{near}")
    for model in models:
        file = timm.models.model_entrypoint(model).__module__.rsplit(".", 1)[-1]
        for call, keywords in _builder_keywords(file, layer):
            blocks = [m for m in _built(model, keywords).modules() if isinstance(m, kind)]
            if blocks:
                count = sum(p.numel() for m in blocks for p in m.parameters())
                yield CompatibleModel(model, call, len(blocks), count)


def _builder_keywords(
    file: str, layer: Callable[..., nn.Module]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keywords for `timm.create_model`, by the file that defines the network.

    Three of timm's builders take a layer, each by a different keyword.
    """
    if file in ("resnet", "res2net", "resnest", "sknet"):
        yield 'block_args={"attn_layer": layer}', {"block_args": {"attn_layer": layer}}
    elif file in ("efficientnet", "mobilenetv3", "hardcorenas"):
        yield "se_layer=layer", {"se_layer": layer}
    elif file == "byobnet":
        yield "attn_layer=layer", {"attn_layer": layer}


_INITIALIZERS = (
    Tensor.normal_,
    Tensor.uniform_,
    Tensor.erfinv_,
    Tensor.mul_,
    Tensor.add_,
    Tensor.clamp_,
)


class _WithoutInitialization(TorchFunctionMode):
    """Skips initialization, which takes most of the time and has no effect on meta tensors."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return args[0] if func in _INITIALIZERS else func(*args, **(kwargs or {}))


def _built(model: str, keywords: dict[str, Any]) -> nn.Module:
    import timm

    try:
        with torch.device("meta"), _WithoutInitialization():
            net: nn.Module = timm.create_model(model, **keywords)
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError):
        # This builder takes no such layer; pruned networks and initializers fail in their own ways.
        return nn.Identity()
    return net
