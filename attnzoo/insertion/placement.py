"""The configuration of a block for one place: layout, channels and length of the tensor there."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..autograd import reference_forms
from ..registry import Entry, InputSize, Layout, build, stated_macs
from ..validation.tensors import first_sample
from .host import How, Inserted, Site, enclosed, host, with_channels_at
from .matching import ancestors
from .probe import Channels, ModuleTrace, Run
from .report import Placement


class _Standard(NamedTuple):
    """The channel axis of a layout, and its shape as text."""

    axis: int
    words: str


LAYOUTS: Mapping[Layout, _Standard] = {
    "image": _Standard(1, "(B, C, H, W)"),
    "sequence": _Standard(-1, "(B, ..., T, C)"),
    "image_series": _Standard(2, "(B, T, C, H, W)"),
}


class InsertOptions(NamedTuple):
    """The options of `insert` that apply to every place."""

    how: How
    residual: bool
    zero_init: bool
    channel_axis: int | None
    config: Mapping[str, Any]


class Plan(NamedTuple):
    """Everything needed to build the module that replaces the matched one."""

    placement: Placement
    site: Site
    device: torch.device | None
    dtype: torch.dtype
    gain: bool
    training: bool
    fused: bool  # inside a layer that reads its children's weights without calling them


def plan(entry: Entry, model: nn.Module, path: str, run: Run, options: InsertOptions) -> Plan:
    """Plan the block for one place and test it on the meta device; errors name the place."""
    module, trace = model.get_submodule(path), run.traces[path]
    label = f"{path!r} ({type(enclosed(module)).__name__})"
    x, channels = _tensor(label, trace, options.how)
    layout = _layout(label, entry, x, options.config)
    standard = LAYOUTS[layout].axis
    axis = _axis(label, layout, x, channels, options.channel_axis)
    axes = None if axis == standard else (axis, standard)
    config = _config(entry, x.movedim(axis, standard), layout, options.config)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), x.dtype)
    block = _built(label, entry, config, x, dtype)
    _check_call(label, entry, block, x, axes, trace.output if options.how == "instead" else x)
    parameters = sum(p.numel() for p in block.parameters()) + options.zero_init
    macs = _macs(block, layout, x.movedim(axis, standard))
    if options.how == "instead":
        parameters -= sum(p.numel() for p in module.parameters())
        macs -= trace.macs // run.batch
    placement = Placement(
        path=path,
        how=options.how,
        layout=layout,
        config=config,
        shape=tuple(x.shape),
        parameters=parameters,
        macs=macs,
    )
    return Plan(
        placement=placement,
        site=Site(_key(module), options.how, options.residual, axes),
        device=trace.device,
        dtype=dtype,
        gain=options.zero_init,
        training=model.training,
        fused=any(isinstance(m, nn.TransformerEncoderLayer) for m in ancestors(model, path)),
    )


def _tensor(label: str, trace: ModuleTrace, how: How) -> tuple[Tensor, Channels | None]:
    """The tensor that the block takes at a place, and the channels of the last layer before it."""
    if trace.calls != 1:
        raise ValueError(
            f"{label} is called {trace.calls} times in a run of the model on example_input; a "
            "block goes where a module is called once"
        )
    output, inputs = trace.output, trace.arguments
    if how != "before" and not isinstance(output, Tensor):
        raise ValueError(
            f"{label} returns a {type(output).__name__}, and a block takes one tensor; match a "
            "module inside it that returns a tensor"
        )
    if how != "after" and not (trace.positional and isinstance(inputs[0], Tensor)):
        raise ValueError(f"{label} has no tensor as its first argument, which how={how!r} needs")
    if how == "instead" and sum(isinstance(value, Tensor) for value in inputs) > 1:
        raise ValueError(f"{label} is called with several tensors; a block instead takes one")
    x = output if how == "after" else inputs[0]
    if not x.is_floating_point():
        raise ValueError(f"{label} has a tensor of {x.dtype} there; a block takes floating ones")
    return x, trace.channels_out if how == "after" else trace.channels_in


def _layout(label: str, entry: Entry, x: Tensor, config: Mapping[str, Any]) -> Layout:
    """The layout given as `layout=`, else the block's first one with this number of axes."""
    asked = config.get("layout")
    for layout, fits in (
        ("image", x.ndim == 4),
        ("image_series", x.ndim == 5),
        ("sequence", x.ndim >= 3),
    ):
        if layout in entry.layouts and fits and asked in (None, layout):
            return layout
    takes = " or ".join(LAYOUTS[layout].words for layout in entry.layouts if layout in LAYOUTS)
    raise ValueError(
        f"{label} has a tensor of shape {tuple(x.shape)} there, {x.ndim} axes; {entry.name!r} "
        f"takes {takes}" + (f", and layout={asked!r} was asked for" if asked is not None else "")
    )


def _axis(
    label: str, layout: Layout, x: Tensor, channels: Channels | None, asked: int | None
) -> int:
    """The channel axis: the requested one, else the one whose size matches the last layer's."""
    standard = LAYOUTS[layout].axis
    if asked is not None:
        return _asked_axis(label, standard, x, asked)
    legal = [1, 2, -1] if layout == "image_series" else [1, -1]
    at = [axis for axis in legal if channels is not None and x.shape[axis] == channels.count]
    if channels is None or not at or (standard in at and (len(at) == 1 or channels.axis is None)):
        axis = standard
    else:
        axis = channels.axis if channels.axis in at else at[0]
    if layout == "sequence" and axis == 1 and x.ndim == 4:
        raise ValueError(
            f"{label} has a map (B, C, H, W) of shape {tuple(x.shape)} there, and the block takes "
            f"{LAYOUTS[layout].words}; channel_axis=1 takes it as (B, C, N, T) all the same"
        )
    return axis


def _asked_axis(label: str, standard: int, x: Tensor, asked: int) -> int:
    if isinstance(asked, bool) or not isinstance(asked, int):
        raise TypeError(f"channel_axis={asked!r} must be an int or None")
    if not -x.ndim <= asked < x.ndim or asked % x.ndim == 0:
        raise ValueError(
            f"channel_axis={asked} is no axis of channels of {label}, whose tensor has shape "
            f"{tuple(x.shape)}; take 1 or -1"
        )
    return standard if (asked - standard) % x.ndim == 0 else asked


def _config(entry: Entry, x: Tensor, layout: Layout, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `build`: the given ones, and `c`, `layout` and `length` from the tensor."""
    known = entry.signature.parameters
    found: dict[str, Any] = {"c": x.shape[LAYOUTS[layout].axis], **config}
    if "layout" in known:
        found["layout"] = layout
    if "length" in known and layout != "image":
        found.setdefault("length", x.shape[1 if layout == "image_series" else -2])
    return found


def _built(
    label: str, entry: Entry, config: dict[str, Any], x: Tensor, dtype: torch.dtype
) -> nn.Module:
    """The block on the meta device, in eval mode."""
    try:
        return build(entry.name, **config, device="meta", dtype=dtype).eval()
    except ValueError as error:
        raise _refused(label, entry, x, error) from error


def _check_call(
    label: str,
    entry: Entry,
    block: nn.Module,
    x: Tensor,
    axes: tuple[int, int] | None,
    like: Tensor,
) -> None:
    """Raises ValueError unless the block takes `x` and returns a tensor of the shape of `like`."""
    try:
        with torch.no_grad(), reference_forms():
            y = with_channels_at(axes, block, x)
    except ValueError as error:
        raise _refused(label, entry, x, error) from error
    if not isinstance(y, Tensor) or y.shape != like.shape:
        found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"{label}: {entry.name!r} makes {found} of {tuple(x.shape)}, and the network goes on "
            f"with {tuple(like.shape)}"
        )


def _refused(label: str, entry: Entry, x: Tensor, error: ValueError) -> ValueError:
    shape = tuple(x.shape)
    return ValueError(
        f"{label} has shape {shape} there, which {entry.name!r} does not take: {error}"
    )


def _macs(block: nn.Module, layout: Layout, x: Tensor) -> int:
    """Multiply-adds of one sample: by the block's formula, as `attnzoo.measure` reports them, or
    counted if it has none."""
    from ..cost import counter

    rows, columns = x.shape[-2:] if layout != "sequence" else (1, 1)
    steps = {"image": 1, "sequence": x.shape[-2], "image_series": x.shape[1]}[layout]
    stated = stated_macs(block, InputSize(1, steps, rows, columns))
    if stated is not None:  # of one sequence; further leading axes add sequences
        return stated * (math.prod(x.shape[1:-2]) if layout == "sequence" else 1)
    with torch.no_grad(), reference_forms():
        return counter.count(lambda: block(first_sample(x)), strict=False).macs


def _key(module: nn.Module) -> str:
    """`attnzoo`, with a number appended if the place already has inserted blocks."""
    depth = 1
    while isinstance(module, Inserted):
        depth, module = depth + 1, host(module)
    return "attnzoo" if depth == 1 else f"attnzoo{depth}"
