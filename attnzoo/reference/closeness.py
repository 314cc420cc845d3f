"""The relative error of results, by which every comparison decides whether they agree.

Whole tensors are compared. The size of a difference is relative to the size of the expected tensor,
or to a thousandth of the largest expected tensor of the same group if that is larger: a gradient
that is zero except for rounding, such as that of a bias before BatchNorm, has no correct digits.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

FLOOR = 1e-3  # the least scale of a tensor, relative to the largest expected one of its group
_TINY = 1e-30  # the least scale in a group of zeros
Tensors = Mapping[str, Tensor | None]


def half_the_digits(dtype: torch.dtype) -> float:
    """The relative error allowed in `dtype`, such as between two orders of summation."""
    return math.sqrt(torch.finfo(dtype).eps)


def largest(tensor: Tensor) -> float:
    """The largest magnitude; NaN where the tensor contains one."""
    return float(tensor.detach().double().abs().max()) if tensor.numel() else 0.0


def root_mean_square(tensor: Tensor) -> float:
    """The root mean square, which single outliers of half precision hardly change."""
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0


def relative_errors(
    found: Tensors,
    wanted: Tensors,
    *,
    size: Callable[[Tensor], float] = largest,
    noise: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Each result's error, by name, for one group of tensors.

    Infinite if only one side has the tensor, the shapes differ, or either is not finite; tensors
    that are not of floating-point numbers must be equal.

    Args:
        found: the results; None means that a tensor is absent.
        wanted: the expected tensors.
        size: the norm, `largest` or `root_mean_square`.
        noise: by name, sizes that the error is relative to if they are larger than the tensor's.
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
    """The size of each difference, by name; infinite in the cases that `relative_errors` lists."""
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
