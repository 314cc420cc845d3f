"""`attnzoo.insert` and `attnzoo.remove`: the order of the steps, and the changes to the network.

Everything is found out and tried before anything is changed, so that an error leaves the network
as it was. See README.md in this folder.
"""

import inspect
from typing import Any, get_args

import torch
from torch import nn

from ..registry import Entry, build, find
from ..validation import check
from .host import How, Inserted, InsertedSequence, enclosed, ignore
from .matching import Where, ancestors, matches, named_modules
from .placement import LAYOUTS, InsertOptions, Plan, plan
from .probe import run
from .report import Insertion

# Where an encoder of torch keeps what its `use_nested_tensor` was before an insertion.
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
    """Put a block after, before or instead of every matched module of a network, in place.

    The network runs once on `example_input`, in eval mode and without gradients; what the matched
    modules gave says the channels, the layout and, for blocks of a fixed one, the length. Buffers,
    random states and training flags are then as before. Nothing changes on an error.

    Parameters and state dict keep their keys; the block's are `<path>.attnzoo.*`, so weights of
    the network load before the insertion, and after it with `strict=False`.

    Args:
        model: the network; places are paths as in `model.named_modules()`, never the model itself.
        where: a glob such as "layer[1-4].*.bn2" (`*` crosses dots, and of nested matches the
            outermost counts), an `re.Pattern` (full match) or a callable `(path, module) -> bool`.
        name: a block of `attnzoo.names()` that takes one tensor and keeps its shape.
        example_input: a tensor, a tuple of positional or a dict of keyword arguments of `model`.
        how: "after" works on the module's output, "before" on its first argument, "instead"
            replaces it; the module is then kept aside for `remove`, no part of the network.
        residual: x + block(x) rather than block(x).
        zero_init: the network computes at first what it did: x + gain * (block(x) - x), or with
            `residual` x + gain * block(x), with one learned gain a place that starts at zero. At
            a gain of one it is the same insertion without `zero_init`. The block's own parameters
            have a gradient once the gain has moved, from the second step on.
        channel_axis: where the tensor in the network has its channels, if not where its layers
            say: 1 for (B, C, H, W) and (B, C, T), -1 for (B, H, W, C) and (B, T, C).
        dry_run: change nothing, only report.
        **cfg: further keywords of the block. A block's own `residual`, should it have one, keeps
            its default.

    Returns:
        What went where, and the parameters and multiply-adds that it added.

    Raises:
        ValueError: `where` matches nothing, a shared module, or nested ones; a matched module is
            not called exactly once in a run, or has a tensor that the block does not take or whose
            shape it does not keep; `example_input` does not fit.
        TypeError: an argument of the wrong type, an unknown keyword of the block.
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
            _keep_dense(model, path)
    return report


def remove(model: nn.Module) -> nn.Module:
    """Take every inserted block out again, in place; returns the network.

    The matched modules themselves return to their places, with the weights they have by now.
    """
    _check_model(model)
    for path, module in [*named_modules(model)]:
        if isinstance(module, Inserted) and path:
            _replace(model, path, enclosed(module))
    for encoder in (m for m in model.modules() if _NESTED in vars(m)):
        encoder.use_nested_tensor = vars(encoder).pop(_NESTED)
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
    """The module that takes the matched one's place."""
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
    enclosed(model.get_submodule(parent)).add_module(name, module)


def _keep_dense(model: nn.Module, path: str) -> None:
    """In eval mode torch's encoder packs padded batches as nested tensors, which no block takes."""
    for module in ancestors(model, path):
        if isinstance(module, nn.TransformerEncoder):
            vars(module).setdefault(_NESTED, module.use_nested_tensor)
            module.use_nested_tensor = False
