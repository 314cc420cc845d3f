"""The count of fvcore, which papers quote, and how it differs from the exact count.

fvcore does not count attention, `baddbmm` and products with vectors, estimates `einsum`, and counts
norms, pooling and interpolation as if they were products. With handles for these operators its
count becomes exact. It is independent of `cost.counter`, so each of the two verifies the other.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..validation.tensors import map_tensors, tensors


class FvcoreCount(NamedTuple):
    """The multiply-adds of a call by fvcore, and how they differ from the exact number."""

    macs: int  # `FlopCountAnalysis(module, inputs).total()`, which papers quote
    missed: dict[str, int]  # multiply-adds that it does not count, by operator
    surplus: dict[str, int]  # what it counts although it is no multiply-add, by operator

    @property
    def exact(self) -> int:
        """Multiply-adds with what is missed and without the surplus."""
        return self.macs + sum(self.missed.values()) - sum(self.surplus.values())


def fvcore_macs(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> FvcoreCount:
    """The count of fvcore for `module(*args, **kwargs)`, with what it misses by operator.

    The module is traced twice in its current mode: call `module.eval()` first, and pass one sample.
    The device must not be meta, where tracing fails at convolutions. fvcore registers hooks on
    every layer, so a block that folds layers without hooks calls them one by one here.

    Raises:
        ModuleNotFoundError: fvcore is not installed.
    """
    quoted = _by_operator(module, args, kwargs or {}, {})
    exact = _by_operator(module, args, kwargs or {}, _HANDLES)
    return FvcoreCount(sum(quoted.values()), dict(exact - quoted), dict(quoted - exact))


def _by_operator(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], handles: Mapping[str, Any]
) -> Counter[str]:
    call = _TensorsOnly(module, args, dict(kwargs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and warns of every Python branch
        from fvcore.nn import FlopCountAnalysis

        analysis = FlopCountAnalysis(call, tuple(tensors(args, dict(kwargs))))
        analysis.set_op_handle(**handles)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return Counter({name: round(macs) for name, macs in analysis.by_operator().items()})


class _TensorsOnly(nn.Module):
    """A call of the module as a function of its tensors only, as tracing requires."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.nest = module, (args, kwargs)

    def forward(self, *values: Tensor) -> Any:
        remaining = iter(values)
        args, kwargs = map_tensors(lambda _: next(remaining), self.nest)
        return self.module(*args, **kwargs)


def _shape(value: Any) -> list[int]:
    sizes: list[int] = value.type().sizes()
    return sizes


def _product(inputs: list[Any], outputs: list[Any]) -> int:
    """`matmul`, `mm`, `bmm`, `mv`, `dot`: each result element sums over the first's last axis."""
    return math.prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _added(inputs: list[Any], outputs: list[Any]) -> int:
    """`addmm`, `baddbmm`, `addmv`: the product of the second and the third."""
    return _product(inputs[1:], outputs)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """With two operands, the product of the sizes of all indices.

    Raises NotImplementedError for other forms.
    """
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
