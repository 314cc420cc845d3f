"""The changes to a network: a module is replaced by one that holds it and a block."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import _torch
from . import guard
from .decay import NoWeightDecay
from .host import Inserted, InsertedSequence, Site, enclosed, host, ignore
from .matching import ancestors, paths_of

if TYPE_CHECKING:
    from .recipe import Place

# Attribute that stores an `nn.TransformerEncoder`'s `use_nested_tensor` from before an insertion.
_NESTED = "attnzoo_use_nested_tensor"


def check_model(model: nn.Module) -> None:
    """Raises TypeError for what is no network that can be changed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is scripted, and its modules stay; insert before scripting")


def copied(module: nn.Module, device: Any, dtype: torch.dtype | None) -> nn.Module:
    """A copy of a module of the user's for one place."""
    return copy.deepcopy(module).to(device=device, dtype=dtype)


def put(
    model: nn.Module, place: "Place", block: nn.Module, device: Any, dtype: torch.dtype | None
) -> None:
    """Put the block at one place, which is every path of the module there."""
    matched = model.get_submodule(place.path)
    gain = torch.zeros(1, device=device, dtype=dtype) if place.zero_init else None
    site = Site(_key(matched), place.how, place.residual, place.arrangement)
    kind = InsertedSequence if hasattr(matched, "__len__") else Inserted
    module = kind(matched, block, site, gain)
    block.train(model.training)
    module.training = model.training
    for path in paths_of(model, matched):
        around = ancestors(model, path)
        if any(isinstance(m, nn.TransformerEncoderLayer) for m in around):
            module.register_forward_hook(ignore)
        replace(model, path, module)
        for ancestor in around:
            guard.protect(ancestor)
            _keep_dense(ancestor)
    vars(model)["no_weight_decay"] = NoWeightDecay(model)


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the module at a path, without the hooks of registrations."""
    parent, _, name = path.rpartition(".")
    _torch.children_by_name(enclosed(model.get_submodule(parent)))[name] = module


def release(model: nn.Module) -> None:
    """Undo what insertions have set on the modules around them."""
    for module in model.modules():
        guard.release(module)
        if isinstance(vars(module).get("no_weight_decay"), NoWeightDecay):
            del vars(module)["no_weight_decay"]
        if _NESTED in vars(module):
            vars(module)["use_nested_tensor"] = vars(module).pop(_NESTED)


def _keep_dense(module: nn.Module) -> None:
    """Disable the nested tensors of `nn.TransformerEncoder`'s eval mode, which blocks refuse."""
    if isinstance(module, nn.TransformerEncoder):
        vars(module).setdefault(_NESTED, module.use_nested_tensor)
        module.use_nested_tensor = False


def _key(module: nn.Module) -> str:
    """`attnzoo`, with a number appended if the place already has inserted blocks."""
    depth = 1
    while isinstance(module, Inserted):
        depth, module = depth + 1, host(module)
    return "attnzoo" if depth == 1 else f"attnzoo{depth}"
