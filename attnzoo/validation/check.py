"""Checks of arguments; each docstring states the condition, and a violation raises.

An error names the argument, its value, the rule and the nearest legal value.
"""

import difflib
import math
import re
from collections.abc import Sequence
from numbers import Integral
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from .._torch import (
    autocast_dtype,
    autocast_possible,
    normalizes_batches,
    own_parameters,
    parameters_by_name,
)
from .messages import shown

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_LAYOUT_AXES = {
    "token": ("...", "C"),
    "image": ("B", "C", "H", "W"),
    "sequence": ("...", "T", "C"),
    "image_series": ("B", "T", "C", "H", "W"),
}
# Least and largest number of axes, and the axis of the channels.
_LAYOUT_RANKS = {
    layout: (
        len(axes) - ("..." in axes),
        math.inf if "..." in axes else len(axes),
        axes.index("C") - len(axes),
    )
    for layout, axes in _LAYOUT_AXES.items()
}


def choice(name: str, value: object, legal: Sequence[str]) -> None:
    """`value` is one of the legal words."""
    if not isinstance(value, str) or value not in legal:
        near = difflib.get_close_matches(shown(value), legal, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        must = f"must be one of {', '.join(map(repr, legal))}{hint}"
        raise ValueError(f"{name}={shown(value)} {must}")


def positive(**values: int) -> None:
    """Each value is an int of at least 1: `check.positive(c=c, reduction=reduction)`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}={shown(value)} must be an int, not {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name}={shown(value)} must be at least 1")


def sizes(**values: Sequence[int]) -> None:
    """Each value is a sequence of at least one int, all at least 1: `check.sizes(kernels=...)`."""
    for name, items in values.items():
        if not isinstance(items, (list, tuple)):
            raise TypeError(f"{name}={shown(items)} must be a tuple of ints, such as (3, 5)")
        if not items:
            raise ValueError(f"{name}={items!r} is empty; it needs at least one int, such as (3,)")
        positive(**{f"{name}[{i}]": item for i, item in enumerate(items)})


def divides(*, by: str, of: str, **values: int) -> int:
    """The quotient `of / by`, both named: `divides(of="c", by="heads", c=c, heads=heads)`."""
    positive(**values)
    whole, part = values[of], values[by]
    if whole % part:
        small = [d for d in range(1, math.isqrt(whole) + 1) if whole % d == 0]
        legal = [*small, *(whole // d for d in small)]
        below = max((d for d in legal if d < part), default=1)
        above = min((d for d in legal if d > part), default=whole)
        near = f"nearest that do are {below}, {above}" if below < above else f"nearest is {above}"
        raise ValueError(f"{by}={part} must divide {of}={whole}; the {near}")
    return whole // part


def reduced(c: int, reduction: int, *, name: str = "c") -> int:
    """`c // reduction`, which must be at least 1."""
    positive(**{name: c, "reduction": reduction})
    if c < reduction:
        raise ValueError(
            f"reduction={reduction} leaves no channel of {name}={c} ({c} // {reduction} = 0); "
            f"take reduction={c} or less, or {name}={reduction} or more"
        )
    return c // reduction


def flag(**values: object) -> None:
    """Each value is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}={shown(value)} must be True or False")


def device(name: str, value: torch.device | str | int) -> None:
    """A tensor can be created on the device."""
    try:
        torch.empty(0, device=value)
    except Exception as error:  # each backend has its own
        reason = re.split(r"\n|\. ", str(error), maxsplit=1)[0][:200]
        gpu = isinstance(value, str) and value.lower().startswith("gpu")
        hint = "; torch's name of a GPU is 'cuda'" if gpu else ""
        raise ValueError(f"{name}={shown(value)} cannot be used here: {reason}{hint}") from None


def dense(name: str, x: Tensor, expected: str) -> None:
    """`x` is an initialized strided Tensor; `expected` is its shape, for the error message."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor {expected}, not {type(x).__name__}")
    if isinstance(x, (UninitializedParameter, UninitializedBuffer)):
        raise TypeError(f"{name} is uninitialized; it must be a Tensor {expected}")
    if x.is_nested:
        raise TypeError(f"{name} is nested; it must be dense: pass {name}.to_padded_tensor(0.0)")
    if x.layout != torch.strided:
        raise TypeError(f"{name} is {x.layout}; it must be dense: pass {name}.to_dense()")


Like: TypeAlias = Tensor | nn.Module | None  # of a module its first floating parameter, if any


def image(x: Tensor, c: int | None = None, like: Like = None, *, name: str = "x") -> None:
    """`x` is a floating (B, C, H, W) with C = `c`, on the device and of the dtype of `like`."""
    _tensor(name, x, "image", c, like)


def sequence(x: Tensor, c: int | None = None, like: Like = None, *, name: str = "x") -> None:
    """`x` is a floating (..., T, C) with C = `c`, on the device and of the dtype of `like`."""
    _tensor(name, x, "sequence", c, like)


def token(x: Tensor, c: int | None = None, like: Like = None, *, name: str = "x") -> None:
    """`x` is a floating (..., C) with C = `c`, on the device and of the dtype of `like`."""
    _tensor(name, x, "token", c, like)


def image_series(x: Tensor, c: int | None = None, like: Like = None, *, name: str = "x") -> None:
    """`x` is a floating (B, T, C, H, W) with C = `c`, on the device and of the dtype of `like`."""
    _tensor(name, x, "image_series", c, like)


def listed(values: Sequence[Tensor], count: int, *, name: str) -> None:
    """`values` is a list or tuple of `count` tensors."""
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{name} must be a list of {count} tensors, not {type(values).__name__}")
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} tensors; the block was built for {count}")


def pyramid(
    features: Sequence[Tensor], dims: Sequence[int], cells: Sequence[int], like: Tensor
) -> None:
    """`features` are images (B, dims[i], H_i, W_i) with the batch size of `like`.

    Divided into cells of side cells[i], each must have as many rows and columns of cells as the map
    with the smallest cells.
    """
    listed(features, len(dims), name="features")
    for i, (x, c) in enumerate(zip(features, dims, strict=True)):
        image(x, c, like, name=f"features[{i}]")
        if x.shape[0] != like.shape[0]:
            raise ValueError(
                f"features[{i}] has {x.shape[0]} samples, x {like.shape[0]}; they must agree"
            )
    least = list(cells).index(min(cells))
    grid = [-(-n // cells[least]) for n in features[least].shape[2:]]
    for i, (x, cell) in enumerate(zip(features, cells, strict=True)):
        for axis, size, wanted in zip("HW", x.shape[2:], grid, strict=True):
            if -(-size // cell) != wanted:
                raise ValueError(
                    f"features[{i}] has {axis}={size}, {-(-size // cell)} cells of {cell}; "
                    f"features[{least}] has {wanted} of {cells[least]}: resize features[{i}] to "
                    f"{axis} from {(wanted - 1) * cell + 1} to {wanted * cell}"
                )


def per_step(value: Tensor, steps: Sequence[int], x: Tensor, *, name: str) -> Tensor:
    """`value`, one number per step, expanded to shape `steps`; (T,) is shared by all samples."""
    dense(name, value, f"of shape {tuple(steps)}")
    if value.device != x.device:
        raise ValueError(
            f"{name} is on {value.device}, x on {x.device}; move one: {name}.to(x.device)"
        )
    if tuple(value.shape) not in (tuple(steps), tuple(steps[-1:])):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}; it must be {tuple(steps)} or "
            f"{tuple(steps[-1:])}, one for each step of x"
        )
    return value.expand(steps)


def days(value: Tensor | None, steps: Sequence[int], x: Tensor, *, finite: bool) -> Tensor:
    """`positions`, real numbers of shape `steps`; all finite if `finite`, checked on CPU only."""
    if value is None:
        raise ValueError(
            "positions is missing: pass the days of the steps, positions=tensor of shape "
            f"{tuple(steps)}, or build with positions=False"
        )
    value = per_step(value, steps, x, name="positions")
    if value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"positions is {value.dtype}; it must be real numbers, one day per step")
    if finite and value.device.type == "cpu" and not value.isfinite().all():  # CUDA would wait
        raise ValueError("positions has values that are not finite; pass a day for every step")
    return value


def padding_mask(mask: Tensor | None, steps: Sequence[int], x: Tensor) -> Tensor | None:
    """`key_padding_mask` expanded to shape `steps`, True where a step is ignored; or None."""
    if mask is None:
        return None
    if isinstance(mask, Tensor) and mask.dtype != torch.bool:
        raise TypeError(
            f"key_padding_mask is {mask.dtype}; it must be torch.bool, True where a step is ignored"
        )
    return per_step(mask, steps, x, name="key_padding_mask")


def first_parameter(module: nn.Module) -> Tensor | None:
    """The first floating parameter of a module, which quantized ones may lack."""
    for parameter in own_parameters(module):
        if parameter.is_floating_point():
            return parameter
    for child in module.children():
        found = first_parameter(child)
        if found is not None:
            return found
    return None


def same_shape(**tensors: Tensor) -> None:
    """All have the shape of the last: `check.same_shape(y=y, x=x)`."""
    name, like = list(tensors.items())[-1]
    for other, tensor in tensors.items():
        if tensor.shape != like.shape:
            raise ValueError(
                f"{other} has shape {tuple(tensor.shape)}, {name} {tuple(like.shape)}; "
                "they must agree: resize or project one"
            )


def batch_norm(
    norm: nn.Module, values: int, x: Tensor, *, name: str = "x", grow: str = "batch or image"
) -> None:
    """BatchNorm in training mode gets more than one value per channel.

    SyncBatchNorm is not checked, since its values are those of all ranks, nor is what was put in a
    BatchNorm's place. `name` is the argument and `grow` its axes to enlarge, in the error message.
    """
    checked = normalizes_batches(norm) and not isinstance(norm, nn.SyncBatchNorm)
    if checked and norm.training and values <= 1:
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} gives train-mode BatchNorm {values} "
            f"value{'s' * (values != 1)} per channel, which has no variance; it needs at least 2: "
            f"take a larger {grow}, or eval()"
        )


def same_batch(**tensors: Tensor) -> None:
    """All have as many samples as the first: `check.same_batch(source=source, guidance=guidance)`.

    The samples are counted along the first axis.
    """
    (first, wanted), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape[0] != wanted.shape[0]:
            raise ValueError(
                f"{name} has {tensor.shape[0]} samples (shape {tuple(tensor.shape)}), "
                f"{first} {wanted.shape[0]} (shape {tuple(wanted.shape)}); they must agree"
            )


def _permuted(name: str, x: Tensor, c: int, axis: int) -> str:
    """`; take x.permute(...)` where another axis has the size of the channels."""
    at = [i for i in range(1, x.ndim) if x.shape[i] == c]
    if not at:
        return ""
    order = [i for i in range(x.ndim) if i != at[-1]]
    order.insert(x.ndim + axis, at[-1])
    return f"; axis {at[-1]} has {c}: take {name}.permute({', '.join(map(str, order))})"


def _as_map(name: str, x: Tensor, c: int | None) -> str:
    """`; take ...` for tokens of an image, (B, H * W, C)."""
    if x.ndim != 3 or x.shape[2] != c:
        return ""
    side = math.isqrt(x.shape[1])
    sizes = f"{side}, {side}" if side * side == x.shape[1] else "H, W"
    return f"; of tokens (B, H * W, C) take {name}.mT.unflatten(2, ({sizes}))"


def _tensor(name: str, x: Tensor, layout: str, c: int | None, like: Like) -> None:
    if torch.compiler.is_compiling() or not _is_plainly_legal(x, layout, c, like):
        _check_tensor(name, x, layout, c, like)


def _is_plainly_legal(x: Tensor, layout: str, c: int | None, like: Like) -> bool:
    """Whether nothing has to be checked one by one, at a tenth of the cost.

    An ordinary dense tensor without autocast, of the channels, dtype and device of the block.
    """
    if isinstance(like, nn.Module):
        like = next(iter(parameters_by_name(like).values()), None)
    if like is None or type(x) is not Tensor or x.is_nested or autocast_possible():
        return False
    least, most, axis = _LAYOUT_RANKS[layout]
    shape, dtype = x.shape, x.dtype
    return (
        least <= len(shape) <= most
        and shape[axis] == c
        and 0 not in shape
        and dtype is like.dtype
        and dtype in DTYPES
        and x.layout is torch.strided
        and ((x.is_cpu and like.is_cpu) or x.device == like.device)
        and not (torch.is_grad_enabled() and x.is_inference())
    )


def _check_tensor(name: str, x: Tensor, layout: str, c: int | None, like: Like) -> None:
    axes = _LAYOUT_AXES[layout]
    shown = f"({', '.join(axes)})"
    dense(name, x, shown)
    if (x.ndim < len(axes) - 1) if axes[0] == "..." else (x.ndim != len(axes)):
        hint = _as_map(name, x, c) if layout == "image" else ""
        raise ValueError(f"{name} has shape {tuple(x.shape)}; layout {layout!r} is {shown}{hint}")
    axis = axes.index("C") - len(axes)
    if c is not None and x.shape[axis] != c:
        raise ValueError(
            f"{name} has {x.shape[axis]} channels (axis {axis} of shape {tuple(x.shape)}); "
            f"the block was built for c={c} and takes {shown}" + _permuted(name, x, c, axis)
        )
    for i in range(1, min(len(axes), x.ndim) + 1):
        if axes[-i] in "HWT" and x.shape[-i] == 0:
            label = axes[-i]
            raise ValueError(f"{name} has shape {tuple(x.shape)}; axis {label} of {shown} is empty")
    if x.dtype not in DTYPES:
        legal = "float64, float32, bfloat16 or float16"
        raise TypeError(f"{name} is {x.dtype}; it must be {legal}: pass {name}.float()")
    like = first_parameter(like) if isinstance(like, nn.Module) else like
    if like is None:
        return
    if x.device != like.device:
        raise ValueError(
            f"{name} is on {x.device}, the block's parameters on {like.device}; "
            f"move one: block.to({str(x.device)!r})"
        )
    eager = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if eager and like.requires_grad and x.is_inference():
        raise ValueError(
            f"{name} was created in inference_mode, so that autograd cannot save it; pass "
            f"{name}.clone(), or call the block under torch.no_grad()"
        )
    low = autocast_dtype(x)
    if low is not None and {x.dtype, like.dtype} - {torch.float32, torch.float64, low}:
        raise TypeError(
            f"{name} is {x.dtype}, the block's parameters {like.dtype}; under autocast to {low} "
            f"both must be that or torch.float32: cast them, or leave autocast"
        )
    if x.dtype != like.dtype and (low is None or torch.float64 in (x.dtype, like.dtype)):
        raise TypeError(
            f"{name} is {x.dtype}, the block's parameters {like.dtype}; cast one: "
            f"{name}.to({like.dtype}), or run under torch.autocast"
        )
