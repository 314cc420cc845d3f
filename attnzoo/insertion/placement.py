"""What block fits a place: layout, channels and length from the tensor that was seen there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..autograd import reference_forms
from ..registry import Entry, Layout, build
from .host import How, Inserted, Site, host, innermost, moved
from .probe import Channels, ModuleTrace, Run, multiply_adds

STANDARD: Mapping[Layout, int] = {"image": 1, "sequence": -1, "image_series": 2}  # channel axes
_WORDS = {"image": "(B, C, H, W)", "sequence": "(B, ..., T, C)", "image_series": "(B, T, C, H, W)"}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One block in the network."""

    path: str
    how: How
    layout: Layout
    config: dict[str, Any]  # the keywords of `attnzoo.build`
    shape: tuple[int, ...]  # of the tensor that the block takes, in the traced run
    parameters: int  # added; for "instead", less those of the module that gave way
    macs: int  # multiply-adds added to one sample's forward pass, counted likewise


class Plan(NamedTuple):
    """All that it takes to make the module that stands in the matched one's place."""

    placement: Placement
    site: Site
    device: torch.device | None
    dtype: torch.dtype
    gain: bool
    training: bool
    fused: bool  # inside a layer of torch that reads its children's weights past them


class InsertOptions(NamedTuple):
    """What `insert` was asked for, beside the places."""

    how: How
    residual: bool
    zero_init: bool
    channel_axis: int | None
    cfg: Mapping[str, Any]


def plan(entry: Entry, model: nn.Module, path: str, run: Run, options: InsertOptions) -> Plan:
    """The block for one place, tried out on the meta device; refusals name the place."""
    module, seen = model.get_submodule(path), run.seen[path]
    label = f"{path!r} ({type(innermost(module)).__name__})"
    x, said = _tensor(label, seen, options.how)
    layout = _layout(label, entry, x, options.cfg)
    axis = _axis(label, layout, x, said, options.channel_axis)
    axes = None if axis == STANDARD[layout] else (axis, STANDARD[layout])
    config = _config(entry, x.movedim(axis, STANDARD[layout]), layout, options.cfg)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), x.dtype)
    like = seen.output if options.how == "instead" else x
    parameters, macs = _tried(label, entry, config, x, dtype, axes, like)
    if options.how == "instead":
        parameters -= sum(p.numel() for p in module.parameters())
        macs -= seen.macs
    placement = Placement(
        path=path,
        how=options.how,
        layout=layout,
        config=config,
        shape=tuple(x.shape),
        parameters=parameters + options.zero_init,
        macs=macs // run.batch,
    )
    return Plan(
        placement=placement,
        site=Site(_key(module), options.how, options.residual, axes),
        device=seen.device,
        dtype=dtype,
        gain=options.zero_init,
        training=model.training,
        fused=any(isinstance(m, nn.TransformerEncoderLayer) for m in ancestors(model, path)),
    )


def _tensor(label: str, seen: ModuleTrace, how: How) -> tuple[Tensor, Channels | None]:
    """The tensor that the block takes at a place, and what the layers said of its channels."""
    if seen.calls != 1:
        raise ValueError(
            f"{label} is called {seen.calls} times in a run of the model on example_input; a block "
            "goes where a module is called once"
        )
    output, inputs = seen.output, seen.arguments
    if how != "before" and not isinstance(output, Tensor):
        raise ValueError(
            f"{label} gives a {type(output).__name__}, and a block takes one tensor; match a "
            "module inside it that gives a tensor"
        )
    if how != "after" and not (seen.positional and isinstance(inputs[0], Tensor)):
        raise ValueError(f"{label} has no tensor as its first argument, which how={how!r} needs")
    if how == "instead" and sum(isinstance(value, Tensor) for value in inputs) > 1:
        raise ValueError(f"{label} is called with several tensors; a block instead takes one")
    x = output if how == "after" else inputs[0]
    if not x.is_floating_point():
        raise ValueError(f"{label} has a tensor of {x.dtype} there; a block takes floating ones")
    return x, seen.channels_out if how == "after" else seen.channels_in


def _layout(label: str, entry: Entry, x: Tensor, cfg: Mapping[str, Any]) -> Layout:
    """By the number of axes, of those the block has; `layout=` decides."""
    asked = cfg.get("layout")
    for layout, fits in (
        ("image", x.ndim == 4),
        ("image_series", x.ndim == 5),
        ("sequence", x.ndim >= 3),
    ):
        if layout in entry.layouts and fits and asked in (None, layout):
            return layout
    takes = " or ".join(_WORDS[layout] for layout in entry.layouts if layout in _WORDS)
    raise ValueError(
        f"{label} has a tensor of shape {tuple(x.shape)} there, {x.ndim} axes; {entry.name!r} "
        f"takes {takes}" + (f", and layout={asked!r} was asked for" if asked is not None else "")
    )


def _axis(label: str, layout: Layout, x: Tensor, said: Channels | None, asked: int | None) -> int:
    """The axis of the channels: what was asked for, else where the last layer's number stands."""
    standard = STANDARD[layout]
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, int):
            raise TypeError(f"channel_axis={asked!r} must be an int or None")
        if not -x.ndim <= asked < x.ndim or asked % x.ndim == 0:
            raise ValueError(
                f"channel_axis={asked} is no axis of channels of {label}, whose tensor has shape "
                f"{tuple(x.shape)}; take 1 or -1"
            )
        return standard if (asked - standard) % x.ndim == 0 else asked
    legal = [1, 2, -1] if layout == "image_series" else [1, -1]
    at = [axis for axis in legal if said is not None and x.shape[axis] == said.count]
    if said is None or not at or (standard in at and (len(at) == 1 or said.axis is None)):
        axis = standard
    else:
        axis = said.axis if said.axis in at else at[0]
    if layout == "sequence" and axis == 1 and x.ndim == 4:
        raise ValueError(
            f"{label} has a map (B, C, H, W) of shape {tuple(x.shape)} there, and the block takes "
            f"{_WORDS[layout]}; channel_axis=1 takes it as (B, C, N, T) all the same"
        )
    return axis


def _config(entry: Entry, x: Tensor, layout: Layout, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `build`: those given, and c, layout and length as the tensor has them."""
    known = entry.signature.parameters
    config: dict[str, Any] = {"c": x.shape[STANDARD[layout]], **cfg}
    if "layout" in known:
        config["layout"] = layout
    if "length" in known and layout != "image":
        config.setdefault("length", x.shape[1 if layout == "image_series" else -2])
    return config


def _tried(
    label: str,
    entry: Entry,
    config: dict[str, Any],
    x: Tensor,
    dtype: torch.dtype,
    axes: tuple[int, int] | None,
    like: Tensor,
) -> tuple[int, int]:
    """Parameters and multiply-adds of the block, which must take `x` and give a tensor `like`."""
    counter = multiply_adds()
    try:
        block = build(entry.name, **config, device="meta", dtype=dtype).eval()
        with torch.no_grad(), reference_forms(), counter:
            y = moved(block, x, axes)
    except ValueError as error:
        shape = tuple(x.shape)
        raise ValueError(
            f"{label} has shape {shape} there, which {entry.name!r} does not take: {error}"
        ) from error
    if not isinstance(y, Tensor) or y.shape != like.shape:
        given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"{label}: {entry.name!r} makes {given} of {tuple(x.shape)}, and the network goes on "
            f"with {tuple(like.shape)}"
        )
    return sum(p.numel() for p in block.parameters()), counter.get_total_flops() // 2


def _key(module: nn.Module) -> str:
    """`attnzoo`, or with a number where blocks are at the same place already."""
    depth = 1
    while isinstance(module, Inserted):
        depth, module = depth + 1, host(module)
    return "attnzoo" if depth == 1 else f"attnzoo{depth}"


def ancestors(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules that hold the one at `path`, outermost first."""
    names = path.split(".")
    return [innermost(model.get_submodule(".".join(names[:i]))) for i in range(len(names))]
