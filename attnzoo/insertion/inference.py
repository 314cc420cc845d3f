"""Which layout, channel axis and grid a recorded tensor has, where the options leave that open."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..registry import Layout
from .arrangement import KEPT, Arrangement, infer_grid
from .host import How
from .layouts import LAYOUTS
from .probe import Channels
from .source import Source


class InsertOptions(NamedTuple):
    """The options of `insert` that apply to every place."""

    how: How
    residual: bool
    zero_init: bool
    channel_axis: int | None
    as_map: bool | tuple[int, int]
    shared: bool
    train: bool
    config: Mapping[str, Any]


def arrangement_of(
    label: str,
    source: Source,
    x: Tensor,
    channels: Channels | None,
    image: tuple[int, int],
    options: InsertOptions,
) -> tuple[Layout, Arrangement]:
    """The block's layout, and how the network's tensor becomes one of it."""
    if options.as_map is False:
        layout = _layout(label, source, x, options.config)
        axes = _axes(label, layout, x, channels, options.channel_axis)
        return layout, Arrangement(axes)
    if x.ndim == 3 and "image" in source.layouts:
        axes = _axes(label, "sequence", x, channels, options.channel_axis)
        tokens = (x if axes is None else x.movedim(*axes)).shape[1]
        return "image", Arrangement(axes, *_grid(label, tokens, image, options.as_map))
    if x.ndim == 4 and "sequence" in source.layouts:
        if options.as_map is not True:
            raise ValueError(
                f"as_map={options.as_map} gives tokens a grid, and {label} has a map of shape "
                f"{tuple(x.shape)}; as_map=True takes its cells as tokens"
            )
        axes = _axes(label, "image", x, channels, options.channel_axis)
        return "sequence", Arrangement(axes, flat=True)
    raise ValueError(
        f"as_map={options.as_map} is for an image block on tokens (B, T, C) or a block of tokens "
        f"on a map (B, C, H, W); {label} has a tensor of shape {tuple(x.shape)}, and "
        f"{source.name!r} takes {_words(source)}: leave as_map out, or match another module"
    )


def _grid(
    label: str, tokens: int, image: tuple[int, int], given: bool | tuple[int, int]
) -> tuple[tuple[int, int], int]:
    """The rows and columns of a map of tokens, and how many tokens come before it."""
    if isinstance(given, tuple):
        rows, columns = given
        kept = tokens - rows * columns
        if kept < 0:
            grid, others = (
                infer_grid(tokens, given) or infer_grid(tokens, image) or ((1, tokens), 0)
            )
            behind = f", behind {others} other tokens" if others else ""
            raise ValueError(
                f"as_map={given} takes {rows * columns} tokens, and {label} has {tokens}; the "
                f"nearest grid is as_map={grid}{behind}"
            )
        return (rows, columns), kept
    found = infer_grid(tokens, image)
    if found is None:
        before = ", ".join(map(str, KEPT))
        raise ValueError(
            f"as_map=True finds no map in the {tokens} tokens of {label}: they are no grid in the "
            f"proportions of the input, {image[0]} x {image[1]}, behind {before} class or "
            "register tokens; give its rows and columns: as_map=(rows, columns)"
        )
    return found


def entered(label: str, arrangement: Arrangement, x: Tensor) -> Tensor:
    try:
        return arrangement.enter(x)
    except ValueError as error:
        raise ValueError(f"{label} has shape {tuple(x.shape)} in one of its calls: {error}") from (
            error
        )


def _words(source: Source) -> str:
    return " or ".join(LAYOUTS[layout].words for layout in source.layouts if layout in LAYOUTS)


def _layout(label: str, source: Source, x: Tensor, config: Mapping[str, Any]) -> Layout:
    """The layout given as `layout=`, else the block's first one with this number of axes."""
    asked = config.get("layout")
    for layout, fits in (
        ("image", x.ndim == 4),
        ("image_series", x.ndim == 5),
        ("sequence", x.ndim >= 3),
    ):
        if layout in source.layouts and fits and asked in (None, layout):
            return layout
    hint = f", and layout={asked!r} was asked for" if asked is not None else ""
    if x.ndim == 3 and "image" in source.layouts:
        hint += "; as_map=True takes tokens as a map"
    raise ValueError(
        f"{label} has a tensor of shape {tuple(x.shape)} there, {x.ndim} axes; {source.name!r} "
        f"takes {_words(source)}{hint}"
    )


def _axes(
    label: str, layout: Layout, x: Tensor, channels: Channels | None, asked: int | None
) -> tuple[int, int] | None:
    """The tensor's channel axis and the layout's, where they differ.

    It is the requested one, else the one whose size matches the last layer's channels.
    """
    standard = LAYOUTS[layout].axis
    if asked is not None:
        axis = _asked_axis(label, standard, x, asked)
        return None if axis == standard else (axis, standard)
    legal = [1, 2, -1] if layout == "image_series" else [1, -1]
    at = [axis for axis in legal if channels is not None and x.shape[axis] == channels.count]
    if channels is None or not at or (standard in at and (len(at) == 1 or channels.axis is None)):
        axis = standard
    else:
        axis = channels.axis if channels.axis in at else at[0]
    if layout == "sequence" and axis == 1 and x.ndim == 4:
        raise ValueError(
            f"{label} has a map (B, C, H, W) of shape {tuple(x.shape)} there, and the block takes "
            f"{LAYOUTS[layout].words}; as_map=True takes its cells as tokens, channel_axis=1 takes "
            "it as (B, C, N, T)"
        )
    return None if axis == standard else (axis, standard)


def _asked_axis(label: str, standard: int, x: Tensor, asked: int) -> int:
    if isinstance(asked, bool) or not isinstance(asked, int):
        raise TypeError(f"channel_axis={asked!r} must be an int or None")
    if not -x.ndim <= asked < x.ndim or asked % x.ndim == 0:
        raise ValueError(
            f"channel_axis={asked} is no axis of channels of {label}, whose tensor has shape "
            f"{tuple(x.shape)}; take 1 or -1"
        )
    return standard if (asked - standard) % x.ndim == 0 else asked
