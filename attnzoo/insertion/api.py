"""`attnzoo.insert` and `attnzoo.remove`: the order of the steps.

All placements are planned and checked before the network is changed, so that an error leaves it
unmodified. See README.md in this folder.
"""

from typing import Any, get_args

from torch import nn

from ..registry import names
from ..validation import check
from . import placing
from .host import How, Inserted, enclosed
from .inference import InsertOptions
from .matching import Where, matches, named_modules
from .placement import plan
from .probe import run
from .report import Insertion
from .source import source_of


def insert(
    model: nn.Module,
    where: Where,
    name: str | nn.Module,
    *,
    example_input: Any,
    how: How = "after",
    residual: bool = False,
    zero_init: bool = False,
    channel_axis: int | None = None,
    as_map: bool | tuple[int, int] = False,
    shared: bool = False,
    train: bool = False,
    dry_run: bool = False,
    **cfg: Any,
) -> Insertion:
    """Insert a block after, before or instead of every matched module of a network, in place.

    The network runs once on `example_input`, in eval mode and without gradients. The block's
    channels, its layout and, if it needs one, its `length` come from the tensors of that run.
    Buffers, random states and training flags are restored afterwards. An error changes nothing.

    Existing parameters keep their keys in the state dict; those of the block are added under
    `<path>.attnzoo`. Weights of the original network can therefore be loaded before the insertion,
    or after it with `strict=False`.

    Args:
        model: the network, whose submodules are matched by their path in `model.named_modules()`;
            the model itself is never matched.
        where: a glob such as "layer[1-4].*.bn2" (`*` also matches dots; of nested matches only the
            outermost is used), a list of paths or globs, an `re.Pattern` (full match) or a callable
            `(path, module) -> bool`.
        name: a block of `attnzoo.names()` that takes one tensor and keeps its shape, or a module of
            your own that does; every place then gets a copy of it.
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
        as_map: True takes tokens (B, T, C) as a map, for a block of images, and a map as tokens,
            for a block of sequences. Rows and columns have the proportions of the input image;
            class and register tokens before them pass by the block. A pair gives the rows and
            columns. For inputs of another size the grid is scaled.
        shared: allow modules that are called several times, or are at several paths: one block acts
            at every call.
        train: run the network in train mode, for modules that it calls in training only.
        dry_run: only report, without changing the network.
        **cfg: further keywords of the block. If the block has its own `residual` argument, that
            keeps its default. With a module of your own only `layout`.

    Returns:
        A report of the places, and of the parameters and multiply-adds added at each. Its `recipe`
        is JSON, from which `attnzoo.apply` puts the same blocks into a new network.

    Raises:
        ValueError: `where` matches nothing, a shared module, or nested ones; a matched module is
            not called exactly once in a run (see `shared` and `train`), or its tensor does not fit
            the block, or the block changes the tensor's shape; the model does not accept
            `example_input`.
        TypeError: an argument has the wrong type, or the block has no such keyword.
    """
    options = InsertOptions(how, residual, zero_init, channel_axis, as_map, shared, train, cfg)
    placing.check_model(model)
    _check_options(options)
    _check_order(model, where, name)
    source = source_of(name, cfg)
    check.flag(dry_run=dry_run)
    matched = matches(model, where, shared)
    traced = run(model, matched, example_input, train)
    plans = [plan(source, model, path, traced, options) for path in matched]
    report = Insertion(
        block=source.name,
        placements=tuple(one.placement for one in plans),
        network_parameters=sum(p.numel() for p in model.parameters()),
        network_macs=traced.macs // traced.batch,
        uncounted=traced.uncounted,
        dry_run=dry_run,
    )
    if not dry_run:
        blocks = [source.make(one.place.config, one.device, one.dtype) for one in plans]
        for one, block in zip(plans, blocks, strict=True):
            placing.put(model, one.place, block, one.device, one.dtype)
    return report


def remove(model: nn.Module) -> nn.Module:
    """Remove every inserted block from a network, in place, and return the network.

    The original modules are put back with their current weights.
    """
    placing.check_model(model)
    while found := [item for item in named_modules(model) if isinstance(item[1], Inserted)]:
        for path, module in found:
            placing.replace(model, path, enclosed(module))
    placing.release(model)
    return model


def _check_order(model: nn.Module, where: Where, name: object) -> None:
    """Raises ValueError if the paths and the block's name are swapped."""
    if not (isinstance(where, str) and isinstance(name, str)):
        return
    if where in names() and name not in names() and where not in dict(named_modules(model)):
        raise ValueError(
            f"where={where!r} is the name of a block, and name={name!r} is not; write "
            f"attnzoo.insert(model, {name!r}, {where!r}, ...)"
        )


def _check_options(options: InsertOptions) -> None:
    check.choice("how", options.how, get_args(How))
    check.flag(residual=options.residual, zero_init=options.zero_init)
    check.flag(shared=options.shared, train=options.train)
    if options.zero_init and options.how == "instead":
        raise ValueError(
            "zero_init=True keeps what the network computed, which how='instead' takes out; "
            "take how='after' or 'before'"
        )
    grid = options.as_map
    if not isinstance(grid, bool) and not (
        isinstance(grid, tuple)
        and len(grid) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in grid)
    ):
        raise TypeError(
            f"as_map={grid!r} must be True, or rows and columns of at least 1, such as (14, 14)"
        )
