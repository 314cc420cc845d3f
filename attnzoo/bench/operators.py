"""What each operator costs, as the dispatcher sees it; one that nobody counts is an error.

An operator's cost is found in this order:

- what `register` was told, for operators of one's own (`torch.library`);
- matrix work, products and convolutions, by torch's formulas (`torch.utils.flop_counter`, so that
  its `register_flop_formula` serves too) and for a few that torch passes over: multiply-adds;
- nothing for views, copies, casts, gathers and constants: bytes move, nothing is computed;
- a pointwise operator, by torch's own tag: one operation an element of the result, however costly
  the function; a reduction: one an element of the input;
- what does several such things at once: a weight, stated beside its name below.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry


class Work(NamedTuple):
    """Multiply-adds; elementwise and reduction operations."""

    macs: int = 0
    elementwise: int = 0


class UncountedOperatorError(RuntimeError):
    """An operator is neither known to be free of work nor counted."""


Formula = Callable[..., Work]  # of the operator's own arguments, and its result as `out=`

_registered: dict[str, Formula] = {}


def register(name: str) -> Callable[[Formula], Formula]:
    """State what an operator of one's own costs:

        @register("mylib::scan")
        def scan(x, decay, *, out):  # the operator's arguments, and its result
            return Work(macs=out.numel(), elementwise=3 * out.numel())

    Args:
        name: the operator's `torch.library` name, for all of its overloads.

    Raises:
        ValueError: the name has no namespace, is one of torch's own, or has a count already.
    """
    space, _, operator = name.partition("::")
    if not operator or space in _OURS:
        raise ValueError(
            f"name={name!r} must be an operator of your own, such as 'mylib::scan'; those of torch "
            f"({', '.join(_OURS)}) are counted already"
        )
    if name in _registered:
        raise ValueError(f"name={name!r} has a count already: {_registered[name]}")

    def add(formula: Formula) -> Formula:
        _registered[name] = formula
        return formula

    return add


def formula(operator: Any) -> Formula | None:
    """What a call of the operator costs, or None where nobody counts it."""
    name = _name(operator)
    space, _, base = name.partition("::")
    packet = getattr(operator, "_overloadpacket", operator)
    if name in _registered:
        return _registered[name]
    if packet in flop_registry:
        return lambda *args, out, **kwargs: Work(
            macs=flop_registry[packet](*args, **kwargs, out_val=out) // 2
        )
    if space not in _OURS:
        return None
    if operator.is_view or base in _FREE:
        return lambda *args, out, **kwargs: Work()
    if base in _PRODUCTS:
        return lambda *args, out, **kwargs: Work(macs=_PRODUCTS[base](*args))
    if base in _SEVERAL:
        return lambda *args, out, **kwargs: Work(elementwise=_SEVERAL[base](out, *args, **kwargs))
    if base in _UNTAGGED or _tagged(operator, space, base):
        return lambda *args, out, **kwargs: Work(elementwise=_largest(out))
    return None


def uncounted(operator: Any) -> UncountedOperatorError:
    """The error for an operator without a formula."""
    return UncountedOperatorError(
        f"operator {operator} is neither known to be free of work nor counted; if it is your own, "
        f"state its cost with attnzoo.bench.operators.register({_name(operator)!r})"
    )


def _name(operator: Any) -> str:
    """`aten::relu` for `aten.relu.default`, `aten.relu_.default` and `aten.relu.out`."""
    schema = getattr(operator, "_schema", None)
    if schema is None:
        return str(operator)  # a higher-order operator
    name: str = schema.name
    return name.removesuffix("_") if name.startswith("aten::") else name


def _tagged(operator: Any, space: str, base: str) -> bool:
    """Whether torch calls it pointwise; an operator in place has its tag at the other form."""
    packet = getattr(getattr(torch.ops, space), base, None)
    forms = [] if packet is None else [getattr(packet, form) for form in packet.overloads()]
    return any(torch.Tag.pointwise in form.tags for form in (operator, *forms))


def _largest(out: Tensor | tuple[Tensor | None, ...], *_: Any, **__: Any) -> int:
    """Elements of the result; of several, such as values and indices, of the largest."""
    return max(t.numel() for t in ((out,) if isinstance(out, Tensor) else out) if t is not None)


def _per_input(weight: int) -> Callable[..., int]:
    return lambda out, x, *args, **kwargs: int(weight * x.numel())


def _per_output(weight: int) -> Callable[..., int]:
    return lambda out, *args, **kwargs: int(weight * _largest(out))


def _norm(out: Any, x: Tensor, *args: Any, **kwargs: Any) -> int:
    """Layer, group and batch norm: sum, subtract, square, sum, scale; weight and bias, one each.

    In eval mode batch norm subtracts and scales only.
    """
    affine = sum(isinstance(a, Tensor) for a in args[:3])
    return x.numel() * (5 + affine)


def _batch_norm(out: Any, x: Tensor, *args: Any, **kwargs: Any) -> int:
    own = 5 if any(a is True for a in args) else 2
    return x.numel() * (own + sum(isinstance(a, Tensor) for a in args[:2]))


def _pool(out: Any, x: Tensor, kernel: list[int], *args: Any, **kwargs: Any) -> int:
    """One for each element of each window."""
    axes = x.ndim - 2 if len(kernel) == 1 else 1
    return _largest(out) * math.prod(kernel) ** axes


def _adaptive_pool(out: Any, x: Tensor, *args: Any, **kwargs: Any) -> int:
    """One for each element of each window; windows overlap where the sizes do not divide."""
    size = (out if isinstance(out, Tensor) else out[0]).shape
    axes = zip(x.shape[-len(args[0]) :], size[-len(args[0]) :], strict=True)
    windows = [sum(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in axes]
    return x.shape[: -len(args[0])].numel() * math.prod(windows)


def _sort(out: Any, x: Tensor, *args: Any, **kwargs: Any) -> int:
    """n log2 n comparisons, of the whole tensor at most."""
    return x.numel() * math.ceil(math.log2(max(2, x.numel())))


def _fft(out: Tensor, x: Tensor, dims: list[int], *args: Any, **kwargs: Any) -> int:
    """5 n log2 n for a complex transform, half of it for a real one: the usual convention."""
    whole = out if out.numel() > x.numel() else x
    size = math.prod(whole.shape[d] for d in dims)
    real = not (out.is_complex() and x.is_complex())
    return math.ceil(5 * whole.numel() * math.log2(max(2, size)) / (1 + real))


_OURS = ("aten", "prims")
_FREE = frozenset(
    # constants and room
    "empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like "
    "new_zeros zero ones ones_like new_ones full full_like new_full fill scalar_tensor eye arange "
    "linspace lift lift_fresh lift_fresh_copy resize set "
    # copies, casts and other orders of the same numbers
    "clone copy _to_copy cat stack constant_pad_nd reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d repeat "
    "repeat_interleave flip roll pixel_shuffle pixel_unshuffle channel_shuffle im2col _unsafe_view "
    "_reshape_copy tril triu as_strided_scatter select_scatter slice_scatter upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d "
    # gathers
    "index _unsafe_index index_select gather take embedding index_copy index_fill "
    "masked_select nonzero _local_scalar_dense "
    # about shapes and types alone
    "promote_types result_type sym_size sym_numel sym_stride sym_storage_offset is_same_size".split()
)
_PRODUCTS: Mapping[str, Callable[..., int]] = {
    "mv": lambda matrix, vector: int(matrix.numel()),
    "addmv": lambda total, matrix, vector: int(matrix.numel()),
    "dot": lambda a, b: int(a.numel()),
    "vdot": lambda a, b: int(a.numel()),
    "addr": lambda total, a, b: int(a.numel() * b.numel()),
    "addbmm": lambda total, a, b: int(a.numel() * b.shape[2]),
    "_addmm_activation": lambda bias, a, b: int(a.numel() * b.shape[1]),
}
_UNTAGGED = frozenset(  # pointwise all the same
    ["floor_divide", "hardswish", "glu", "_prelu_kernel", "masked_fill", "bernoulli", "rand", "randn", "rand_like", "randn_like", "randint", "normal", "uniform", "native_dropout"]
)
_SEVERAL: Mapping[str, Callable[..., int]] = {
    **dict.fromkeys(
        ["sum", "nansum", "mean", "prod", "any", "all", "amax", "amin", "max", "min", "argmax", "argmin", "cumsum", "cumprod", "cummax", "cummin"],
        _per_input(1),
    ),
    **dict.fromkeys(("linalg_vector_norm", "norm"), _per_input(2)),  # power, sum
    **dict.fromkeys(("aminmax", "_aminmax"), _per_input(2)),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), _per_input(4)),  # twice sum; square
    **dict.fromkeys(("logsumexp", "logcumsumexp"), _per_input(4)),  # max, subtract, exp, sum
    # max, subtract, exp, sum, divide
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _per_input(5)),
    **dict.fromkeys(("native_layer_norm", "native_group_norm"), _norm),
    "_fused_rms_norm": _per_input(4),  # square, sum, scale, weight
    **dict.fromkeys(
        ["native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update"],
        _batch_norm,
    ),
    **dict.fromkeys(
        ["max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"], _pool
    ),
    **dict.fromkeys(
        ["_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"],
        _adaptive_pool,
    ),
    # a product for each of the 2, 4, 8 or 16 neighbours, and their sum
    "upsample_linear1d": _per_output(3),
    **dict.fromkeys(("upsample_bilinear2d", "grid_sampler_2d"), _per_output(7)),
    **dict.fromkeys(("upsample_trilinear3d", "grid_sampler_3d"), _per_output(15)),
    "upsample_bicubic2d": _per_output(31),
    # one for each number added
    "index_add": lambda out, x, dim, index, source, **_: int(source.numel()),
    "scatter_add": lambda out, x, dim, index, source, **_: int(index.numel()),
    "scatter_reduce": lambda out, x, dim, index, *_, **__: int(index.numel()),
    "scatter": lambda out, x, dim, index, *_, reduce=None: int(index.numel()) if reduce else 0,
    "index_put": lambda out, x, at, values, add=False: int(add and values.numel()),
    **dict.fromkeys(("sort", "topk"), _sort),
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), _fft),
}
