"""The weights that a block gives to channels, places, tokens or time steps, and their picture.

A block is run once on its input, in plain torch operations that are watched: what the input is
multiplied by on its way to the output is a gate, and the matrix that a softmax makes and that
multiplies values is an attention. No block declares its weights, so blocks of your own work too.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import _torch, registry
from .autograd.custom_gradient import reference_forms
from .validation import messages
from .validation.tensors import tensors

Kind = Literal["gate", "attention", "time", "branches"]
# Functions that rearrange the values of their first argument, or that leave factors what they are.
_MOVES = frozenset(
    [
        *("reshape", "view", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze"),
        *("unsqueeze", "contiguous", "clone", "to", "float", "double", "type_as", "mT", "T"),
        *("expand", "expand_as", "chunk", "split", "unbind", "__getitem__", "relu", "dropout"),
        *("view_as", "t"),
    ]
)


class Weights(NamedTuple):
    """Weights, and what they are."""

    kind: Kind
    values: Tensor


def attention_map(module: nn.Module, *inputs: Any, **keywords: Any) -> Tensor:
    """The weights that a block gives to its input, without gradients.

        gate = attnzoo.attention_map(attnzoo.build("cbam", c=64), x)  # (B, 64, H, W)

    The layout depends on the kind of block:

    - A gate, such as `se` or `cbam`: the factor of every value of the input, in the input's shape.
      Of several inputs (`aff`, `gate_exchange`) it is that of the first.
    - Softmax attention, such as `danet_position` or `agent`: (..., heads, queries, keys). A row
      sums to one, or to the number of attentions that the block adds up (`self_self`). The leading
      axes are those of the block's own computation: samples, and windows or nodes that it treats
      as samples. A block without heads has heads = 1. If queries read agents which read keys, it
      is the product of the two. Of several layers, it is the last one's.
    - Convolutions that compete, `sknet` and `psa`: (B, branches, channels), with sum one over the
      branches.
    - A block whose call takes `need_weights`, such as `ltae` or `trend_aware`: what it returns,
      (heads, B, T[, H, W]) or (..., heads, Tq, Tk).

    Args:
        module: a block, in the mode in which its weights are wanted. Dropout and the buffers of
            BatchNorm act as in any call, so `module.eval()` is usually what is meant.
        *inputs, **keywords: the arguments of its call.

    Raises:
        ValueError: the block has no such weights, or several of different shapes.
    """
    return weights(module, *inputs, **keywords).values


def weights(module: nn.Module, *inputs: Any, **keywords: Any) -> Weights:
    """The weights of `attention_map` with their kind."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"attention_map takes an nn.Module, not {messages.shown(module)}")
    name = getattr(registry.entry_of(module), "name", type(module).__name__)
    if "need_weights" in inspect.signature(_torch.uncompiled(module).forward).parameters:
        with torch.no_grad():
            _, found = module(*inputs, **{**keywords, "need_weights": True})
        return Weights("attention" if _first_argument(module) == "query" else "time", found)
    watch = _Watch(tensors(inputs, keywords))
    with torch.no_grad(), reference_forms(), watch:
        result = _torch.uncompiled(module)(*inputs, **keywords)
    first = next(tensors(result), None)
    gate = watch.factor(first) if first is not None else None
    if gate is not None and first is not None:
        return Weights("gate", gate.expand_as(first).clone())
    if watch.mixture is not None:
        return Weights("gate", watch.mixture.reshape(next(tensors(inputs, keywords)).shape))
    if len(watch.branches) == 1 and not watch.attentions:
        return Weights("branches", watch.branches[0])
    return Weights("attention", _one(name, watch.attentions))


def _first_argument(module: nn.Module) -> str:
    return next(iter(inspect.signature(_torch.uncompiled(module).forward).parameters))


def _one(name: str, found: list[Tensor]) -> Tensor:
    shapes = dict.fromkeys(tuple(one.shape) for one in found)
    if not found:
        raise ValueError(
            f"{name} has no weights to show: on this input it computes neither a gate that "
            "multiplies the input nor a softmax over keys whose matrix multiplies values; "
            "attnzoo.attention_map is for blocks such as 'cbam' or 'agent'"
        )
    if len(shapes) > 1:
        raise ValueError(
            f"{name} has attentions of {len(shapes)} shapes, {', '.join(map(str, shapes))}; pass "
            "the submodule that has the one you mean, with its own input"
        )
    last = found[-1]
    return last if last.ndim > 3 else last.unsqueeze(-3)


class _Watch(TorchFunctionMode):
    """Follows factors of the first input, and softmaxes to the products they take part in."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.attentions: list[Tensor] = []
        self.branches: list[Tensor] = []  # softmaxes over one of (samples, branches, channels)
        self.mixture: Tensor | None = None  # what a sum of two inputs gives to the first
        self._factors: dict[int, Tensor] = {}
        self._softmaxes: dict[int, Tensor] = {}
        self._mixed: dict[int, int] = {}  # results of an attention: its place in the list
        self._operands: list[Tensor] = []  # of each attention
        self._kept: list[Any] = []  # so that no other tensor gets the id of a known one
        floating = [tensor for tensor in inputs if tensor.is_floating_point()]
        self._several = len(floating) > 1
        for i, tensor in enumerate(floating):
            self._set(self._factors, tensor, torch.full((), float(i == 0)).to(tensor))

    def factor(self, tensor: Tensor) -> Tensor | None:
        """What the input has been multiplied by on its way to `tensor`; None if it was not."""
        found = self._factors.get(id(tensor))
        return None if found is None or found.ndim == 0 else found

    def _set(self, where: dict[int, Any], tensor: Tensor, value: Any) -> None:
        where[id(tensor)] = value
        self._kept.append(tensor)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = _name(func)
        if name == "scaled_dot_product_attention":
            scores = _sdpa_weights(*args, **kwargs)
            result = func(*args, **kwargs)
            self._mix(scores, args[2] if len(args) > 2 else kwargs["value"], result)
            return result
        result = func(*args, **kwargs)
        if name in _MOVES:
            self._move(func, args, kwargs, result)
        elif name == "softmax":
            axis = kwargs.get("dim", args[1] if len(args) > 1 else -1) % result.ndim
            keys_last = result.mT if result.ndim == 2 and axis == 0 else result
            self._set(self._softmaxes, result, keys_last)
            if result.ndim > 2 and axis < 2 and result.shape[3:].numel() == 1:
                self.branches.append(result.flatten(2).movedim(axis, 1))
        elif name in ("matmul", "bmm"):
            self._product(args[0], args[1], result)
        elif isinstance(result, Tensor):
            self._arithmetic(name, args, kwargs, result)
        return result

    def _move(self, func: Any, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        source = args[0]
        factor = self._factors.get(id(source))
        if factor is not None:
            moved = factor
            if factor.ndim:
                moved = func(factor.expand_as(source), *args[1:], **kwargs)
            several = isinstance(result, (list, tuple))
            for i, tensor in enumerate(result if several else [result]):
                value = moved[i] if several and isinstance(moved, (list, tuple)) else moved
                self._set(self._factors, tensor, value)
        if isinstance(result, Tensor) and id(source) in self._softmaxes:
            matrix = self._softmaxes[id(source)]
            if matrix.ndim == 2 < result.ndim and matrix.shape[1] == result.shape[-1]:
                matrix = result  # rows of all heads, which now have their axes
            self._set(self._softmaxes, result, matrix)
        if isinstance(result, Tensor) and id(source) in self._mixed:
            self._set(self._mixed, result, self._mixed[id(source)])

    def _product(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        if id(left) in self._softmaxes:
            self._mix(self._softmaxes[id(left)], right, result)
        elif id(right) in self._softmaxes:
            self._mix(self._softmaxes[id(right)], left, result)

    def _mix(self, matrix: Tensor, values: Tensor, result: Tensor) -> None:
        """Record an attention; it is joined with one whose result, or whose values, it reads."""
        if id(values) in self._mixed:
            at = self._mixed[id(values)]
            self.attentions[at] = matrix @ self.attentions[at].to(matrix)
        elif self._operands and self._operands[-1] is values:
            at = len(self._operands) - 1
            self.attentions[at] = self.attentions[at] + matrix
        elif self._operands and _are_heads(self._operands[-1], values):
            at = len(self._operands) - 1
            others = self.attentions[at]
            others = others.unsqueeze(-3) if others.ndim == matrix.ndim else others
            self.attentions[at] = torch.cat((others, matrix.unsqueeze(-3)), -3)
            self._operands[at] = values
        else:
            at = len(self._operands)
            self.attentions.append(matrix)
            self._operands.append(values)
        self._set(self._mixed, result, at)

    def _arithmetic(self, name: str, args: tuple[Any, ...], kwargs: Any, result: Tensor) -> None:
        """Give a sum or a product its factor, and a scaled softmax its matrix."""
        rule = _RULES.get(name)
        if rule is None or len(args) < 2:
            return
        for arg in args:
            if id(arg) in self._softmaxes and result.shape == arg.shape:
                self._set(self._softmaxes, result, self._softmaxes[id(arg)])
        known = [self._factors.get(id(arg)) if isinstance(arg, Tensor) else None for arg in args]
        found = rule(args, known, kwargs)
        if found is None:
            return
        self._set(self._factors, result, found)
        if self._several and found.ndim and rule is not _times:
            self.mixture = found.expand_as(result)


def _are_heads(a: Tensor, b: Tensor) -> bool:
    """Whether the values are equal parts of one tensor, as those of heads computed in turn."""
    shared = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    return shared and a.shape == b.shape


_Known = list[Tensor | None]


def _times(args: tuple[Any, ...], known: _Known, kwargs: Any) -> Tensor | None:
    (a, b), (x, y) = args[:2], known[:2]
    if (x is None) == (y is None):
        return None
    product: Tensor = x * b if x is not None else y * a
    return product


def _plus(args: tuple[Any, ...], known: _Known, kwargs: Any) -> Tensor | None:
    x, y = known[:2]
    return None if x is None or y is None else x + kwargs.get("alpha", 1) * y


def _minus(args: tuple[Any, ...], known: _Known, kwargs: Any) -> Tensor | None:
    x, y = known[:2]
    return None if x is None or y is None else x - y


def _over(args: tuple[Any, ...], known: _Known, kwargs: Any) -> Tensor | None:
    x, y = known[:2]
    return None if x is None or y is not None else x / args[1]


def _plus_product(args: tuple[Any, ...], known: _Known, kwargs: Any) -> Tensor | None:
    product = _times(args[1:], known[1:], {})
    if product is None or known[0] is None:
        return None
    total: Tensor = known[0] + kwargs.get("value", 1) * product
    return total


def _between(args: tuple[Any, ...], known: _Known, kwargs: Any) -> Tensor | None:
    weight = args[2] if len(args) > 2 else kwargs["weight"]
    x, y = known[:2]
    if x is None or y is None:
        return None
    mixed: Tensor = x * (1 - weight) + y * weight
    return mixed


_RULES: Mapping[str, Callable[[tuple[Any, ...], _Known, Any], Tensor | None]] = {
    **dict.fromkeys(("mul", "multiply"), _times),
    **dict.fromkeys(("add",), _plus),
    **dict.fromkeys(("sub",), _minus),
    **dict.fromkeys(("div", "truediv", "true_divide"), _over),
    "addcmul": _plus_product,
    "lerp": _between,
}


def _name(func: Any) -> str:
    name: str = getattr(func, "__name__", "")
    if name == "__get__":  # an attribute, such as `x.mT`
        return str(getattr(getattr(func, "__self__", None), "__name__", ""))
    if name == "__getitem__":
        return name
    name = name.strip("_")
    return {"rmul": "mul", "radd": "add", "iadd": "add", "imul": "mul"}.get(name, name)


def _sdpa_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """The weights of `F.scaled_dot_product_attention`, without dropout."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1)


def plot_attention(
    module: nn.Module,
    *inputs: Any,
    picture: Any = None,
    query: int | None = None,
    axes: Any = None,
    **keywords: Any,
) -> Any:
    """Plot the weights of the first sample over an image or a series; needs matplotlib.

    A gate of places is shown as the mean over channels; one that only depends on the channel, as a
    bar for each. Attention is shown as the weights of one query, the mean over heads.

    Args:
        module, *inputs, **keywords: as in `attention_map`.
        picture: what to draw underneath: an image (3, H, W) or (H, W, 3) of any size with values
            from 0 to 1, or the values of a series. Default: nothing.
        query: which query's weights to show; default: the one in the middle.
        axes: matplotlib axes to draw on; default: new ones.

    Returns:
        The axes.
    """
    from matplotlib import pyplot

    found = weights(module, *inputs, **keywords)
    axes = pyplot.subplots()[1] if axes is None else axes
    if found.kind == "branches":
        axes.imshow(found.values[0].float().cpu().numpy(), aspect="auto")
        axes.set(xlabel="channel", ylabel="branch")
        return axes
    image = next(tensors(inputs, keywords))
    plane = tuple(image.shape[-2:]) if image.ndim in (4, 5) else None
    shown = _shown(found, plane, query).float().cpu()
    if shown.ndim == 2:
        _draw_plane(axes, shown, picture)
    elif found.kind == "gate" and plane is not None:
        axes.bar(range(len(shown)), shown.numpy())
        low, high = float(shown.min()), float(shown.max())
        margin = 0.1 * (high - low) or 0.1
        axes.set(xlabel="channel", ylabel="gate", ylim=(low - margin, high + margin))
    else:
        _draw_series(axes, shown, picture if plane is None else None)
        axes.set_xlabel("step" if plane is None else "key")
    return axes


def _shown(found: Weights, plane: tuple[int, ...] | None, query: int | None) -> Tensor:
    """(H, W), or a number for each channel, key or time step, of the first sample."""
    values = found.values
    if found.kind == "gate":
        first = values[0]
        if plane is None:
            return first.mean(-1).flatten() if first.ndim > 1 else first
        constant = bool((first.amax((-2, -1)) == first.amin((-2, -1))).all())
        return first[:, 0, 0] if constant else first.mean(0)
    if found.kind == "time":  # heads B T ...
        first = values[:, 0].mean(0)
        return first.reshape(len(first), -1).mean(1)
    rows = values.flatten(0, -4)[0].mean(0) if values.ndim > 3 else values.mean(0)  # Q K
    middle = len(rows) // 2 + (plane[1] // 2 if plane and len(rows) > 1 else 0)
    row = rows[middle if query is None else query]
    same = plane is not None and len(row) == math.prod(plane)
    return row.view(plane) if same and plane is not None else row


def _draw_plane(axes: Any, shown: Tensor, picture: Any) -> None:
    if picture is None:
        axes.imshow(shown.numpy())
    else:
        image = torch.as_tensor(picture)
        image = image.permute(1, 2, 0) if image.shape[0] == 3 else image
        size = (image.shape[0], image.shape[1])
        large = F.interpolate(shown[None, None], size, mode="bilinear")[0, 0]
        axes.imshow(image.clamp(0, 1).numpy())
        axes.imshow(large.numpy(), alpha=0.55, cmap="viridis")
    axes.axis("off")


def _draw_series(axes: Any, shown: Tensor, picture: Any) -> None:
    steps = range(len(shown))
    axes.bar(steps, shown.numpy(), alpha=0.5, width=1.0)
    axes.set_ylabel("weight")
    if picture is not None:
        beside = axes.twinx()
        series = torch.as_tensor(picture).flatten()[: len(shown)]  # keys may go beyond its steps
        beside.plot(range(len(series)), series.numpy(), color="C1")
        beside.set_ylabel("series")
