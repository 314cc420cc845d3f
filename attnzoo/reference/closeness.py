"""The one rule of closeness: how far results are from those that they should equal.

Whole tensors are compared. The size of a difference is relative to the size of the wanted tensor,
or to a thousandth of the largest wanted tensor of the same group where that is more: a gradient
that is zero except for rounding, such as that of a bias before BatchNorm, has no digits of its own.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

FLOOR = 1e-3  # of the largest wanted tensor of a group: what smaller ones are compared with
_TINY = 1e-30  # the same for a group of zeros
Tensors = Mapping[str, Tensor | None]


def half_the_digits(dtype: torch.dtype) -> float:
    """The relative error that two orders of the same sums may have in `dtype`."""
    return math.sqrt(torch.finfo(dtype).eps)


def largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN where the tensor contains one."""
    return float(tensor.detach().double().abs().max()) if tensor.numel() else 0.0


def root_mean_square(tensor: Tensor) -> float:
    """The size of an average element, which single outliers of half precision hardly move."""
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0


def relative_errors(
    found: Tensors,
    wanted: Tensors,
    *,
    size: Callable[[Tensor], float] = largest,
    noise: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Each result's error, by name, for one group of tensors.

    Infinite where only one side has the tensor, the shapes differ, or either is not finite; results
    that are no floating-point numbers must be equal.

    Args:
        found: the results; None stands for a tensor that is absent.
        wanted: what they should equal.
        size: the norm, `largest` or `root_mean_square`.
        noise: by name, sizes to compare with where they are larger than the tensor's own.
    """
    sizes = {key: size(t) for key, t in wanted.items() if t is not None}
    floor = max((FLOOR * s for s in sizes.values() if math.isfinite(s)), default=0.0)
    errors = {}
    for key, difference in differences(found, wanted, size=size).items():
        scale = max(sizes.get(key, 0.0), floor, (noise or {}).get(key, 0.0), _TINY)
        error = difference / scale
        errors[key] = error if math.isfinite(error) else math.inf
    return errors


def differences(
    found: Tensors, wanted: Tensors, *, size: Callable[[Tensor], float] = largest
) -> dict[str, float]:
    """The size of each difference, by name; infinite where `relative_errors` says so."""
    sizes = {}
    for key in dict.fromkeys([*wanted, *found]):
        ours, theirs = found.get(key), wanted.get(key)
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            sizes[key] = _difference(ours.detach().to(theirs.device), theirs.detach(), size)
        elif ours is not None or theirs is not None:
            sizes[key] = math.inf
    return sizes


def _difference(ours: Tensor, theirs: Tensor, size: Callable[[Tensor], float]) -> float:
    if not (ours.is_floating_point() and theirs.is_floating_point()):
        return 0.0 if torch.equal(ours, theirs) else math.inf
    difference = size(ours.double() - theirs.double())
    return difference if math.isfinite(difference) else math.inf
