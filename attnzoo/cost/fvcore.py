"""A second count of the multiply-adds, by fvcore from a trace, with handles for what it misses.

fvcore passes over attention, `baddbmm` and products with vectors, estimates `einsum`, and counts
norms, pooling and interpolation as if they were products. The harness's own count (`counter.work`)
sees every operator at the dispatcher and refuses unknown ones; this one is there to check it.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import nn

from ..autograd import reference_forms
from ..registry import Inputs
from ..testing.inputs import call, evaluating, first, tensors


def macs_traced(block: nn.Module, inputs: Inputs) -> Counter[str]:
    """Multiply-adds of the first sample's forward pass in eval mode, by fvcore's operator names.

    On a real device: a trace on meta fails at convolutions.
    """
    from fvcore.nn import FlopCountAnalysis

    sample = first(inputs)
    with evaluating(block), warnings.catch_warnings(), reference_forms():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns of every Python branch
        analysis = FlopCountAnalysis(_Flat(block, sample), tuple(tensors(sample)))
        analysis.set_op_handle(**_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counts: Counter[str] = analysis.by_operator()
    return counts


class _Flat(nn.Module):
    """The block as a function of tensors alone, which a trace needs."""

    def __init__(self, block: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.block, self.like = block, inputs

    def forward(self, *values: Any) -> Any:
        left = iter(values)
        return call(
            self.block,
            {
                key: [next(left) for _ in like] if isinstance(like, list) else next(left)
                for key, like in self.like.items()
            },
        )


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _product(inputs: list[Any], outputs: list[Any]) -> int:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`: an element of the result sums over the last axis."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _added(inputs: list[Any], outputs: list[Any]) -> int:
    """`addmm`, `baddbmm`, `addmv`: the product of the second and the third."""
    return _product(inputs[1:], outputs)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """Two operands: every index once."""
    operands = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    if len(operands) != 2 or "..." in "".join(operands):
        raise NotImplementedError(f"einsum of {operands}: two operands and no ellipsis are counted")
    sizes = {
        index: size
        for operand, shape in zip(operands, shapes, strict=True)
        for index, size in zip(operand, shape, strict=True)
    }
    return math.prod(sizes.values())


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries with keys, then weights with values."""
    q, k, v = map(_shape, inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    **dict.fromkeys(("aten::matmul", "aten::mm", "aten::bmm", "aten::mv", "aten::dot"), _product),
    **dict.fromkeys(("aten::addmm", "aten::baddbmm", "aten::addmv"), _added),
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
    "aten::batch_norm": _nothing,
    "aten::group_norm": _nothing,
    "aten::layer_norm": _nothing,
    "aten::instance_norm": _nothing,
    "aten::adaptive_avg_pool2d": _nothing,
    "aten::upsample_nearest2d": _nothing,
    "aten::upsample_bilinear2d": _nothing,
    "aten::grid_sampler": _nothing,
}
