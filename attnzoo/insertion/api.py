"""`attnzoo.insert` and `attnzoo.remove`: the order of the steps, and the changes to the network.

All placements are planned and checked before the network is changed, so that an error leaves it
unmodified. See README.md in this folder.
"""

import inspect
from typing import Any, get_args

import torch
from torch import nn

from .. import _torch
from ..registry import Entry, build, find
from ..validation import check
from . import guard
from .decay import NoWeightDecay
from .host import How, Inserted, InsertedSequence, enclosed, ignore
from .matching import Where, ancestors, matches, named_modules
from .placement import LAYOUTS, InsertOptions, Plan, plan
from .probe import run
from .report import Insertion

# Attribute that stores an `nn.TransformerEncoder`'s `use_nested_tensor` from before an insertion.
_NESTED = "attnzoo_use_nested_tensor"


def insert(
    model: nn.Module,
    where: Where,
    name: str,
    *,
    example_input: Any,
    how: How = "after",
    residual: bool = False,
    zero_init: bool = False,
    channel_axis: int | None = None,
    dry_run: bool = False,
    **cfg: Any,
) -> Insertion:
    """Insert a block after, before or instead of every matched module of a network, in place.

    The network runs once on `example_input`, in eval mode and without gradients. The block's
    channels, its layout and, if it needs one, its `length` are read off the recorded tensors.
    Buffers, random states and training flags are restored afterwards. An error changes nothing.

    Existing parameters keep their keys in the state dict; those of the block are added under
    `<path>.attnzoo`. Weights of the original network can therefore be loaded before the insertion,
    or after it with `strict=False`.

    Args:
        model: the network, whose submodules are matched by their path in `model.named_modules()`;
            the model itself is never matched.
        where: a glob such as "layer[1-4].*.bn2" (`*` also matches dots; of nested matches only the
            outermost is used), an `re.Pattern` (full match) or a callable `(path, module) -> bool`.
        name: a block of `attnzoo.names()` that takes one tensor and keeps its shape.
        example_input: a tensor, a tuple of positional or a dict of keyword arguments of `model`.
        how: "after" applies the block to the module's output, "before" to its first argument;
            "instead" replaces the module, which is kept for `remove` outside of the network.
        residual: compute x + block(x) instead of block(x).
        zero_init: multiply what the block changes by a learned gain that starts at zero, one for
            each place, so that the network's output is unchanged at first: x + gain *
            (block(x) - x), or x + gain * block(x) with `residual`. A gain of one equals the
            insertion without `zero_init`. The block's parameters get nonzero gradients once the
            gain is nonzero, from the second step on.
        channel_axis: the axis of the channels in the network's tensor, to override the one inferred
            from its layers: 1 for (B, C, H, W) and (B, C, T), -1 for (B, H, W, C) and (B, T, C).
        dry_run: only report, without changing the network.
        **cfg: further keywords of the block. If the block has its own `residual` argument, that
            keeps its default.

    Returns:
        A report of the places, and of the parameters and multiply-adds added at each.

    Raises:
        ValueError: `where` matches nothing, a shared module, or nested ones; a matched module is
            not called exactly once in a run, or its tensor does not fit the block, or the block
            changes the tensor's shape; the model does not accept `example_input`.
        TypeError: an argument has the wrong type, or the block has no such keyword.
    """
    options = InsertOptions(how, residual, zero_init, channel_axis, cfg)
    entry = _check(model, name, options)
    check.flag(dry_run=dry_run)
    matched = matches(model, where)
    traced = run(model, matched, example_input)
    plans = {path: plan(entry, model, path, traced, options) for path in matched}
    report = Insertion(
        block=entry.name,
        placements=tuple(one.placement for one in plans.values()),
        network_parameters=sum(p.numel() for p in model.parameters()),
        network_macs=traced.macs // traced.batch,
        uncounted=traced.uncounted,
        dry_run=dry_run,
    )
    if not dry_run:
        built = {path: _build(entry.name, matched[path], one) for path, one in plans.items()}
        for path, module in built.items():
            _replace(model, path, module)
            for ancestor in ancestors(model, path):
                guard.protect(ancestor)
                _keep_dense(ancestor)
        vars(model)["no_weight_decay"] = NoWeightDecay(model)
    return report


def remove(model: nn.Module) -> nn.Module:
    """Remove every inserted block from a network, in place, and return the network.

    The original modules are put back with their current weights.
    """
    _check_model(model)
    while found := [item for item in named_modules(model) if isinstance(item[1], Inserted)]:
        for path, module in found:
            _replace(model, path, enclosed(module))
    for module in model.modules():
        guard.release(module)
        if isinstance(vars(module).get("no_weight_decay"), NoWeightDecay):
            del vars(module)["no_weight_decay"]
        if _NESTED in vars(module):
            vars(module)["use_nested_tensor"] = vars(module).pop(_NESTED)
    return model


def _check(model: nn.Module, name: str, options: InsertOptions) -> Entry:
    entry = find(name)
    _check_model(model)
    check.choice("how", options.how, get_args(How))
    check.flag(residual=options.residual, zero_init=options.zero_init)
    if options.zero_init and options.how == "instead":
        raise ValueError(
            "zero_init=True keeps what the network computed, which how='instead' takes out; "
            "take how='after' or 'before'"
        )
    inputs = [
        key
        for key, parameter in inspect.signature(entry.cls.forward).parameters.items()
        if parameter.default is parameter.empty and key != "self"
    ]
    if len(inputs) > 1 or not set(entry.layouts) & set(LAYOUTS):
        raise ValueError(
            f"{name!r} is called with {', '.join(inputs)} (layout {', '.join(entry.layouts)}); "
            "a block that is inserted takes one tensor"
        )
    for key in options.config.keys() & {"c", "device", "dtype"}:
        raise TypeError(
            f"{key}={options.config[key]!r} is not for insert: every place has channels, device "
            "and dtype of its own"
        )
    return entry


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, not {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model is scripted, and its modules stay; insert before scripting")


def _build(name: str, matched: nn.Module, plan: Plan) -> Inserted:
    """The module that replaces the matched one."""
    block = build(name, **plan.placement.config, device=plan.device, dtype=plan.dtype)
    gain = torch.zeros(1, device=plan.device, dtype=plan.dtype) if plan.gain else None
    has_items = hasattr(matched, "__len__")
    module = (InsertedSequence if has_items else Inserted)(matched, block, plan.site, gain)
    block.train(plan.training)
    module.training = plan.training
    if plan.fused:
        module.register_forward_hook(ignore)
    return module


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    _torch.children_by_name(enclosed(model.get_submodule(parent)))[name] = module


def _keep_dense(module: nn.Module) -> None:
    """Disable the nested tensors of `nn.TransformerEncoder`'s eval mode, which blocks refuse."""
    if isinstance(module, nn.TransformerEncoder):
        vars(module).setdefault(_NESTED, module.use_nested_tensor)
        module.use_nested_tensor = False
