"""Blocks into existing networks, and out again; the parts that do it load when it is called."""

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from .host import How
    from .insertion import Insertion
    from .probe import Where


def insert(
    model: nn.Module,
    where: "Where",
    name: str,
    *,
    example_input: Any,
    how: "How" = "after",
    residual: bool = False,
    zero_init: bool = False,
    channel_axis: int | None = None,
    dry_run: bool = False,
    **cfg: Any,
) -> "Insertion":
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
    from . import insertion
    from .placement import InsertOptions

    options = InsertOptions(how, residual, zero_init, channel_axis, cfg)
    return insertion.insert(model, where, name, example_input, options, dry_run)


def remove(model: nn.Module) -> nn.Module:
    """Take every inserted block out again, in place; returns the network.

    The matched modules themselves return to their places, with the weights they have by now.
    """
    from . import insertion

    return insertion.remove(model)
