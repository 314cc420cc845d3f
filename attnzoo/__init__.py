"""A flat catalogue of plug-and-play attention blocks: the authors' numbers, tested, measured."""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import blocks as blocks
    from . import testing as testing
    from .attention_maps import attention_map, plot_attention
    from .bench import measure
    from .blocks.jbu import adaptive_conv
    from .blocks.pyraformer import pyraformer_mask
    from .blocks.self_self import remove_global_bias
    from .candidates import survey
    from .insertion import apply, insert, no_weight_decay, remove
    from .integrations.timm import attn_layer
    from .reference import verify
    from .registry import (
        Cost,
        Description,
        Entry,
        InputSize,
        UnknownBlockError,
        build,
        describe,
        names,
        register,
    )
    from .registry import InputSize as Extent  # the name of earlier versions
    from .weights import from_upstream

__version__ = "0.1.0"

__all__ = [
    "Cost",
    "Description",
    "Entry",
    "Extent",
    "InputSize",
    "UnknownBlockError",
    "adaptive_conv",
    "apply",
    "attention_map",
    "attn_layer",
    "build",
    "describe",
    "from_upstream",
    "insert",
    "measure",
    "names",
    "no_weight_decay",
    "plot_attention",
    "pyraformer_mask",
    "register",
    "remove",
    "remove_global_bias",
    "survey",
    "verify",
]


# Where each name comes from, imported on first access: `import attnzoo` alone does not load torch.
_HOMES = {
    "attention_map": ".attention_maps",
    "plot_attention": ".attention_maps",
    "measure": ".bench",
    "adaptive_conv": ".blocks.jbu",
    "pyraformer_mask": ".blocks.pyraformer",
    "remove_global_bias": ".blocks.self_self",
    "survey": ".candidates",
    "apply": ".insertion",
    "insert": ".insertion",
    "no_weight_decay": ".insertion",
    "remove": ".insertion",
    "attn_layer": ".integrations.timm",
    "verify": ".reference",
    "Cost": ".registry",
    "Description": ".registry",
    "Entry": ".registry",
    "Extent": ".registry",
    "InputSize": ".registry",
    "UnknownBlockError": ".registry",
    "build": ".registry",
    "describe": ".registry",
    "names": ".registry",
    "register": ".registry",
    "from_upstream": ".weights",
}


# What other catalogues call what is called otherwise here.
_ELSEWHERE = {
    **dict.fromkeys(
        ("list", "list_models", "list_blocks", "available", "models"),
        "attnzoo.names() lists the blocks",
    ),
    **dict.fromkeys(
        ("create", "create_model", "create_block", "make", "get", "get_model", "load"),
        'attnzoo.build("cbam", c=64) builds a block',
    ),
    **dict.fromkeys(
        ("load_pretrained", "from_pretrained", "load_state_dict"),
        'attnzoo.from_upstream("cbam", state_dict, c=64) loads the authors\' weights',
    ),
}


def __getattr__(name: str) -> Any:
    """Public names, and the blocks' classes by their papers' names, imported on first access."""
    if name in _HOMES:
        room = import_module(_HOMES[name], __name__)
        globals()[name] = found = getattr(room, "InputSize" if name == "Extent" else name)
        return found
    if not name.startswith("_"):
        if find_spec(f"{__name__}.{name}") is not None:
            return import_module(f".{name}", __name__)
        registry = import_module(".registry", __name__)
        cls = registry.class_named(name)
        if cls is not None:
            return cls
    hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
    if not hint and name[0].isupper():
        hint = registry.nearest_classes(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
