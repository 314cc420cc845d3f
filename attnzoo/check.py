"""Worded refusals: each names the argument, its value, the rule and the nearest legal thing."""

import math
import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from .ops.precision import autocasting

_LAYOUT_AXES = {
    "token": ("...", "C"),
    "image": ("B", "C", "H", "W"),
    "sequence": ("...", "T", "C"),
    "image_series": ("B", "T", "C", "H", "W"),
}


def config(name: str, cls: type[nn.Module], values: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor values, each held to its annotation; JSON lists become tuples."""
    hints = get_type_hints(cls.__init__)
    return {
        key: fitted(f"{name}: {key}", value, hints[key]) if key in hints else value
        for key, value in values.items()
    }


def choice(name: str, value: object, legal: Sequence[str]) -> None:
    """`value` is one of the legal words."""
    if value not in legal:
        near = get_close_matches(str(value), legal, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, legal))}{hint}")


def positive(**values: int) -> None:
    """Each value is an int of at least 1: `check.positive(c=c, reduction=reduction)`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}={value!r} must be an int, not {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
        if value >= 2**31:
            raise ValueError(f"{name}={value} must be below 2**31")


def sizes(**values: Sequence[int]) -> None:
    """Each value is a sequence of at least one int, all at least 1: `check.sizes(kernels=...)`."""
    for name, items in values.items():
        if not isinstance(items, (list, tuple)):
            raise TypeError(f"{name}={items!r} must be a tuple of ints, such as (3, 5)")
        if not items:
            raise ValueError(f"{name}={items!r} is empty; it needs one int at least, such as (3,)")
        positive(**{f"{name}[{i}]": item for i, item in enumerate(items)})


def odd(**values: int) -> None:
    """Each value is an odd int of at least 1, as kernels centred on their pixel are."""
    positive(**values)
    for name, value in values.items():
        if value % 2 == 0:
            raise ValueError(
                f"{name}={value} must be odd; the nearest are {value - 1}, {value + 1}"
            )


def divides(*, by: str, of: str, **values: int) -> int:
    """The quotient `of / by`, both named: `divides(of="c", by="heads", c=c, heads=heads)`."""
    positive(**values)
    whole, part = values[of], values[by]
    if whole % part:
        small = [d for d in range(1, math.isqrt(whole) + 1) if whole % d == 0]
        legal = [*small, *(whole // d for d in small)]
        below = max((d for d in legal if d < part), default=1)
        above = min((d for d in legal if d > part), default=whole)
        raise ValueError(
            f"{by}={part} must divide {of}={whole}; the nearest that do are {below}, {above}"
        )
    return whole // part


def reduced(c: int, reduction: int, *, name: str = "c") -> int:
    """`c // reduction`, refused where it would be a layer of no channels."""
    positive(**{name: c, "reduction": reduction})
    if c < reduction:
        raise ValueError(
            f"reduction={reduction} leaves no channel of {name}={c} ({c} // {reduction} = 0); "
            f"take reduction={c} or less, or {name}={reduction} or more"
        )
    return c // reduction


def fraction(**values: float) -> None:
    """Each value is a probability below one, as a dropout rate is."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be at least 0 and below 1")


def device(name: str, value: torch.device | str | int) -> None:
    """A tensor can be made on the device here and now."""
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"{name}={value!r} cannot be used here: {reason}") from None


def image(x: Tensor, c: int | None = None, like: Tensor | None = None, *, name: str = "x") -> None:
    """`x` is a floating (B, C, H, W) with C = `c`, on the device and of the dtype of `like`."""
    _tensor(name, x, "image", c, like)


def sequence(
    x: Tensor, c: int | None = None, like: Tensor | None = None, *, name: str = "x"
) -> None:
    """`x` is a floating (..., T, C) with C = `c`, on the device and of the dtype of `like`."""
    _tensor(name, x, "sequence", c, like)


def token(x: Tensor, c: int | None = None, like: Tensor | None = None, *, name: str = "x") -> None:
    """`x` is a floating (..., C) with C = `c`, on the device and of the dtype of `like`."""
    _tensor(name, x, "token", c, like)


def image_series(
    x: Tensor, c: int | None = None, like: Tensor | None = None, *, name: str = "x"
) -> None:
    """`x` is a floating (B, T, C, H, W) with C = `c`, on the device and of the dtype of `like`."""
    _tensor(name, x, "image_series", c, like)


def batch_norm(norm: nn.Module, values: int, x: Tensor, *, grow: str = "batch or image") -> None:
    """Train-mode BatchNorm sees more than one value a channel; SyncBatchNorm counts all ranks.

    `grow` says what of `x` adds values where not both do.
    """
    if norm.training and values <= 1 and not isinstance(norm, nn.SyncBatchNorm):
        raise ValueError(
            f"x of shape {tuple(x.shape)} gives train-mode BatchNorm {values} "
            f"value{'s' * (values != 1)} per channel, which has no variance; it needs at least 2: "
            f"take a larger {grow}, or eval()"
        )


def _tensor(name: str, x: Tensor, layout: str, c: int | None, like: Tensor | None) -> None:
    axes = _LAYOUT_AXES[layout]
    shown = f"({', '.join(axes)})"
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor {shown}, not {type(x).__name__}")
    if (x.ndim < len(axes) - 1) if axes[0] == "..." else (x.ndim != len(axes)):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; layout {layout!r} is {shown}")
    axis = axes.index("C") - len(axes)
    if c is not None and x.shape[axis] != c:
        raise ValueError(
            f"{name} has {x.shape[axis]} channels (axis {axis} of shape {tuple(x.shape)}); "
            f"the block was built for c={c} and takes {shown}"
        )
    for label, size in zip(reversed(axes), reversed(x.shape), strict=False):
        if label in "HWT" and size == 0:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; axis {label} of {shown} is empty")
    if x.layout != torch.strided:
        raise TypeError(f"{name} is {x.layout}; it must be dense: take {name}.to_dense()")
    if not x.is_floating_point():
        raise TypeError(f"{name} is {x.dtype}; it must be floating: take {name}.float()")
    if like is None:
        return
    if x.device != like.device:
        raise ValueError(
            f"{name} is on {x.device}, the block's parameters on {like.device}; "
            f"move one: block.to({str(x.device)!r})"
        )
    if x.dtype != like.dtype and not (autocasting(x) and x.dtype != torch.float64):
        raise TypeError(
            f"{name} is {x.dtype}, the block's parameters {like.dtype}; cast one: "
            f"{name}.to({like.dtype}), or run under torch.autocast"
        )


def fitted(name: str, value: Any, hint: Any) -> Any:
    """`value` as the annotation has it, or a `TypeError` / `ValueError` in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        choice(name, value, arguments)
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options[:-1]:
            try:
                return fitted(name, value, option)
            except (TypeError, ValueError):
                continue
        return fitted(name, value, options[-1])
    if origin is tuple:
        return _fitted_tuple(name, value, arguments, hint)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if hint is float and isinstance(value, Real) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{name}={value} must be finite")
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    shown = getattr(hint, "__name__", str(hint))
    raise TypeError(f"{name}={value!r} must be {shown}, not {type(value).__name__}")


def _fitted_tuple(name: str, value: Any, arguments: tuple[Any, ...], hint: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}={value!r} must be a list or tuple ({hint})")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise ValueError(f"{name}={value!r} must have {len(arguments)} items, not {len(value)}")
    return tuple(
        fitted(f"{name}[{i}]", item, argument)
        for i, (item, argument) in enumerate(zip(value, arguments, strict=True))
    )
