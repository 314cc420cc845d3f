"""The dtype to compute in: under autocast, and where half precision is not enough."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .._torch import autocast_dtype as autocast_dtype
from .._torch import autocast_enabled, autocast_possible
from ..validation.check import first_parameter

_FULL = (torch.float32, torch.float64)
_NO_CONTEXT = nullcontext()


def upcast_dtype(dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 for half precision, in which long sums overflow or lose digits."""
    return torch.promote_types(dtype, torch.float32)


def upcast(x: Tensor) -> Tensor:
    """`x` itself, or a float32 copy if `x` is of half precision."""
    return x if x.dtype in _FULL else x.to(torch.float32)


def downcast(x: Tensor, like: Tensor | nn.Module) -> Tensor:
    """`x` in the dtype of a norm's half-precision parameter, the only one it takes; else `x`.

    The two dtypes differ only under autocast.
    """
    parameter = first_parameter(like) if isinstance(like, nn.Module) else like
    if parameter is None or upcast_dtype(parameter.dtype) != x.dtype:
        return x
    return x.to(parameter.dtype)


def autocast_disabled(x: Tensor) -> AbstractContextManager[object]:
    """A context in which autocast is disabled for the device of `x`."""
    if not torch.compiler.is_compiling() and not autocast_possible():
        return _NO_CONTEXT
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if autocast_enabled(kind) else nullcontext()


def in_one_dtype(
    function: Callable[..., Tensor], dtype_of: Callable[[torch.dtype], torch.dtype] | None = None
) -> Callable[..., Tensor]:
    """`function` with autocast disabled and every tensor in the dtype of its first argument.

    With `dtype_of`, such as `upcast_dtype`, the dtype is what it returns for that one.
    """

    @functools.wraps(function)
    def cast(x: Tensor, *others: Tensor | None) -> Tensor:
        dtype = x.dtype if dtype_of is None else dtype_of(x.dtype)
        with autocast_disabled(x):
            return function(*(None if t is None else t.to(dtype) for t in (x, *others)))

    return cast
