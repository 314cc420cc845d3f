"""Inputs of other sizes, made from one example of inputs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..registry import Inputs, InputSize
from .inputs import call, map_tensors, tensors

# For each number of axes, which of them may be time or space: the first that the module lets vary.
LAYOUTS: dict[int, tuple[dict[int, str], ...]] = {
    3: ({1: "steps"}, {2: "steps"}),  # (B, T, C) or (B, C, T)
    4: ({2: "height", 3: "width"}, {1: "height", 2: "width"}, {2: "steps"}, {1: "steps"}),
    5: ({1: "steps", 3: "height", 4: "width"}, {2: "steps", 3: "height", 4: "width"}),
}


def leading(inputs: Inputs) -> Tensor | None:
    """The first input of three axes or more, else the first with any."""
    found = [t for t in tensors(inputs) if t.ndim]
    return next((t for t in found if t.ndim >= 3), next(iter(found), None))


def batch_size(inputs: Inputs) -> int:
    """Samples in the inputs; 0 if they have no batch axis."""
    first = leading(inputs)
    return 0 if first is None else first.shape[0]


def varied_axes(module: nn.Module, inputs: Inputs) -> dict[int, str]:
    """The axes of time or space of the leading input, found by calls with twice the size.

    Where no layout works, the most common one of that number of axes is returned; where there is no
    such axis, as in (B, C), an empty dict.
    """
    first = leading(inputs)
    layouts = LAYOUTS.get(0 if first is None else first.ndim, ())
    for axes in layouts:
        if first is None:
            break
        sizes = {field: 2 * first.shape[axis] for axis, field in axes.items()}
        try:
            with torch.no_grad():
                call(
                    module, resized(inputs, axes, InputSize(batch=first.shape[0])._replace(**sizes))
                )
        except Exception:
            continue
        return axes
    return layouts[0] if layouts else {}


def resized(inputs: Inputs, axes: Mapping[int, str], size: InputSize, *, seed: int = 0) -> Inputs:
    """The inputs with another batch and, along `axes` of the leading one, other sizes.

    Axes of the other inputs follow: those at the same place in proportion, others if their size is
    the same. Floating values are drawn from the example's, integers and booleans are repeated.
    """
    first = leading(inputs)
    if first is None:
        return inputs
    generator = torch.Generator().manual_seed(seed)
    changes = {a: (first.shape[a], int(getattr(size, field))) for a, field in axes.items()}

    def change(tensor: Tensor) -> Tensor:
        shape = _shape(tensor, first, changes, size.batch)
        return _filled(tensor, shape, generator)

    found: Inputs = map_tensors(change, inputs)
    return found


def _shape(
    tensor: Tensor, first: Tensor, changes: Mapping[int, tuple[int, int]], batch: int
) -> tuple[int, ...]:
    shape = list(tensor.shape)
    if shape and shape[0] == first.shape[0]:
        shape[0] = batch
    for axis, (before, after) in changes.items():
        if tensor.ndim == first.ndim and tensor.shape[axis] == 1 < before:
            continue  # it is broadcast
        if tensor.ndim == first.ndim:
            shape[axis] = -(-tensor.shape[axis] * after // before)
        else:
            places = [i for i, n in enumerate(tensor.shape) if i and n == before]
            for place in places[:1]:
                shape[place] = after
    return tuple(shape)


def _filled(tensor: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values like those of the tensor in another shape."""
    if not tensor.is_floating_point():
        for axis, n in enumerate(shape):
            tensor = tensor.index_select(axis, torch.arange(n) % tensor.shape[axis])
        return tensor
    pool = tensor.detach().flatten()
    if len(pool) < 2 or bool((pool == pool[0]).all()):  # a constant example hides what mixes it
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (pool[0] if len(pool) else 0) + noise.to(tensor)
    drawn = torch.randint(len(pool), shape, generator=generator)
    return pool[drawn]
