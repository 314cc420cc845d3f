"""Estimates the rounding error of a dtype by random perturbations of float64 arithmetic."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._torch import TorchDispatchMode, tree_map_only
from ..reference.closeness import (
    Tensors,
    differences,
    half_the_digits,
    relative_errors,
    root_mean_square,
)
from .inputs import tensors

DRAWS = 32  # of random roundings, at most
MARGIN = 2  # times their effect is allowed

SLACK = {  # times a dtype's precision, since sums of many terms accumulate rounding errors
    torch.float16: 4.0,
    torch.bfloat16: 4.0,
    torch.float32: 32.0,
    torch.float64: 32.0,
}

_LARGEST = torch.finfo(torch.float64).max


class StochasticRounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that perturbs every operator's float64 results at random, as if rounded to `dtype`.

    If terms cancel, as before a normalization, a gradient retains few or none of the dtype's
    digits in any implementation; and an input near the kink of an activation may fall on either
    side of it. The perturbed results show both effects without running the block in that dtype.
    """

    def __init__(self, dtype: torch.dtype, seed: int, slack: float = 1.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.eps = slack * torch.finfo(dtype).eps
        self.tiny = torch.finfo(dtype).tiny  # smaller numbers have the same spacing
        self.generator = torch.Generator("cpu").manual_seed(seed)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tensors(args, kwargs)}

        def rounded(tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.float64 or tensor.untyped_storage().data_ptr() in given:
                return tensor  # a view, or an in-place result, not a new one
            noise = torch.rand(tensor.shape, generator=self.generator, dtype=torch.float32) - 0.5
            size = tensor.abs().clamp_(self.tiny, _LARGEST)  # infinity stays what it is
            return tensor.add_(size.masked_fill_(tensor == 0, 0.0).mul_(noise), alpha=self.eps)

        return tree_map_only(Tensor, rounded, output)


def errors_beyond_rounding(
    groups: dict[str, Tensors], run: Callable[[], dict[str, Tensors]], dtype: torch.dtype
) -> dict[str, float]:
    """The root mean square error of each result, relative to its size, against float64.

    Half of the digits of `dtype` must agree. Only if an error is larger, the size is that of the
    noise if that is larger: `MARGIN` times what random rounding changes, over the limit.

    Args:
        groups: results in `dtype`, by their kind and name.
        run: computes the same in float64.
        dtype: of the arithmetic.
    """
    limit, noise = half_the_digits(dtype), dict[str, float]()
    wanted = run()

    def errors() -> dict[str, float]:
        found: dict[str, float] = {}
        for kind, group in groups.items():
            found |= relative_errors(group, wanted[kind], size=root_mean_square, noise=noise)
        return found

    for seed in range(DRAWS):
        if not any(limit < error < math.inf for error in errors().values()):
            break
        with StochasticRounding(dtype, seed, SLACK[dtype]):
            rounded = run()
        for kind, group in rounded.items():
            for name, off in differences(group, wanted[kind], size=root_mean_square).items():
                if math.isfinite(off):
                    noise[name] = max(noise.get(name, 0.0), MARGIN * off / limit)
    return errors()
