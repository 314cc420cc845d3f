"""Costs of torch's operators by name: free ones, products, and elementwise operations.

Names have no overload and no trailing `_` for the in-place form. Pointwise operators are recognized
by `torch.Tag.pointwise` and listed here only if they lack that tag.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor


def largest(out: Tensor | tuple[Tensor | None, ...], *_: Any, **__: Any) -> int:
    """Elements of the result; of several results, such as values and indices, of the largest."""
    return max(t.numel() for t in ((out,) if isinstance(out, Tensor) else out) if t is not None)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _per_input(weight: int) -> Callable[..., int]:
    return lambda out, x, *args, **kwargs: weight * int(x.numel())


def _per_output(weight: int) -> Callable[..., int]:
    return lambda out, *args, **kwargs: weight * largest(out)


def _norm(out: Any, x: Tensor, *args: Any, **kwargs: Any) -> int:
    """Sum, subtract, square, sum, scale; and one operation each for weight and bias."""
    return x.numel() * (5 + sum(isinstance(a, Tensor) for a in args))


def _batch_norm(out: Any, x: Tensor, *args: Any, **kwargs: Any) -> int:
    """The same with batch statistics; with running statistics only subtract and scale."""
    statistics = 5 if any(a is True for a in args) else 2
    return x.numel() * (statistics + sum(isinstance(a, Tensor) for a in args[:2]))


def _norm_backward(out: Any, *args: Any, **kwargs: Any) -> int:
    """Ten for the gradient of the input, two for that of the weight, one for that of the bias."""
    wanted: list[bool] = next(a for a in reversed(args) if isinstance(a, list) and len(a) == 3)
    return int(args[0].numel()) * (10 * wanted[0] + 2 * wanted[1] + wanted[2])


def _pool_backward(axes: int) -> Callable[..., int]:
    """One for each element of each window, as in the forward pass."""
    return lambda out, grad, x, sides, *_, **__: (
        grad.numel() * math.prod(sides) ** (axes if len(sides) == 1 else 1)
    )


def _adaptive_pool_backward(out: Any, grad: Tensor, x: Tensor, *_: Any, **__: Any) -> int:
    return _adaptive_pool(out, x, list(grad.shape[-(grad.ndim - 2) :]))


def _pool(axes: int) -> Callable[..., int]:
    """One for each element of each window; a single size is used for every axis."""
    return lambda out, x, sides, *_, **__: (
        largest(out) * math.prod(sides) ** (axes if len(sides) == 1 else 1)
    )


def _adaptive_pool(out: Any, x: Tensor, size: list[int], *args: Any, **kwargs: Any) -> int:
    """The same; windows overlap if the input size is not a multiple of the output size."""
    axes = zip(x.shape[-len(size) :], size, strict=True)
    windows = [sum(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in axes]
    return x.shape[: -len(size)].numel() * math.prod(windows)


def _sort(out: Any, x: Tensor, *args: Any, **kwargs: Any) -> int:
    """n log2 n, where n is the number of all elements: an upper bound."""
    return x.numel() * math.ceil(math.log2(max(2, x.numel())))


def _fft(out: Tensor, x: Tensor, axes: list[int], *args: Any, **kwargs: Any) -> int:
    """By convention, 5 n log2 n for a complex transform and half of that for a real one."""
    whole = out if out.numel() > x.numel() else x
    length = math.prod(whole.shape[axis] for axis in axes)
    halves = 1 + (out.is_complex() and x.is_complex())
    return math.ceil(2.5 * halves * whole.numel() * math.log2(max(2, length)))


# Free: constants and allocations; copies, casts and permutations; gathers; shape and dtype queries.
FREE = _names("""
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like
    new_zeros zero ones ones_like new_ones full full_like new_full fill scalar_tensor eye arange
    linspace lift lift_fresh lift_fresh_copy resize set

    clone copy _to_copy cat stack unsafe_split unsafe_split_with_sizes constant_pad_nd
    slice_backward select_backward unfold_backward diagonal_backward
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d repeat repeat_interleave flip roll pixel_shuffle pixel_unshuffle
    channel_shuffle im2col _unsafe_view _reshape_copy tril triu as_strided_scatter select_scatter
    slice_scatter upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d

    index _unsafe_index index_select gather take embedding index_copy index_fill masked_select
    nonzero _local_scalar_dense

    promote_types result_type sym_size sym_numel sym_stride sym_storage_offset is_same_size
""")

# Pointwise operators without `torch.Tag.pointwise`.
UNTAGGED = _names("""
    leaky_relu
    floor_divide hardswish glu _prelu_kernel masked_fill bernoulli rand randn rand_like randn_like
    randint normal uniform native_dropout native_dropout_backward hardswish_backward glu_backward
    threshold_backward softplus_backward elu_backward leaky_relu_backward hardtanh_backward
    hardsigmoid_backward log_sigmoid_backward silu_backward mish_backward gelu_backward
    sigmoid_backward tanh_backward _prelu_kernel_backward
""")


def _recurrent(x: Tensor, *weights: Any, **_: Any) -> int:
    """Every matrix once per step: two matrices on the CPU, a list of all weights from cuDNN."""
    matrices = weights[0] if isinstance(weights[0], (list, tuple)) else weights[:2]
    return math.prod(x.shape[:-1]) * sum(int(w.numel()) for w in matrices if w.ndim == 2)


# Multiply-adds of products that `torch.utils.flop_counter` does not count.
PRODUCTS: Mapping[str, Callable[..., int]] = {
    "mv": lambda matrix, vector: int(matrix.numel()),
    "addmv": lambda total, matrix, vector, **_: int(matrix.numel()),
    "dot": lambda a, b: int(a.numel()),
    "vdot": lambda a, b: int(a.numel()),
    "addr": lambda total, a, b, **_: int(a.numel() * b.numel()),
    "addbmm": lambda total, a, b, **_: int(a.numel() * b.shape[2]),
    "mkldnn_rnn_layer": _recurrent,
    "_cudnn_rnn": _recurrent,
    "_addmm_activation": lambda bias, a, b, **_: int(a.numel() * b.shape[1]),
}

# Elementwise operations of a call, from its result and arguments.
ELEMENTWISE: Mapping[str, Callable[..., int]] = {
    name: operations
    for names, operations in (
        ("sum nansum mean prod any all amax amin max min argmax argmin", _per_input(1)),
        ("cumsum cumprod cummax cummin", _per_input(1)),
        ("linalg_vector_norm norm", _per_input(2)),  # power, sum
        ("aminmax _aminmax", _per_input(2)),
        ("var std var_mean std_mean", _per_input(4)),  # sum, subtract, square, sum
        ("logsumexp logcumsumexp", _per_input(4)),  # maximum, subtract, exponential, sum
        ("_softmax _log_softmax _safe_softmax", _per_input(5)),  # and divide
        ("native_layer_norm native_group_norm", _norm),
        ("_fused_rms_norm", _per_input(4)),  # square, sum, scale, weight
        ("native_batch_norm cudnn_batch_norm _native_batch_norm_legit", _batch_norm),
        ("_native_batch_norm_legit_no_training _batch_norm_with_update", _batch_norm),
        ("avg_pool2d max_pool2d_with_indices", _pool(2)),
        ("avg_pool3d max_pool3d_with_indices", _pool(3)),
        ("_adaptive_avg_pool2d _adaptive_avg_pool3d", _adaptive_pool),
        ("adaptive_max_pool2d adaptive_max_pool3d", _adaptive_pool),
        # products with 2, 4, 8 or 16 neighbors, and their sum
        ("upsample_linear1d", _per_output(3)),
        ("upsample_bilinear2d grid_sampler_2d", _per_output(7)),
        ("upsample_trilinear3d grid_sampler_3d", _per_output(15)),
        ("upsample_bicubic2d", _per_output(31)),
        # one for each number added
        ("index_add", lambda out, x, axis, at, source, **_: source.numel()),
        ("scatter_add scatter_reduce", lambda out, x, axis, at, *_, **__: at.numel()),
        ("scatter", lambda out, x, axis, at, *_, reduce=None: at.numel() if reduce else 0),
        ("index_put", lambda out, x, at, values, add=False: values.numel() if add else 0),
        ("col2im", _per_input(1)),
        ("_cdist_forward", lambda out, a, *_: 3 * out.numel() * a.shape[-1]),
        # product, sum, product, difference
        ("_softmax_backward_data _log_softmax_backward_data", _per_input(4)),
        ("native_layer_norm_backward native_group_norm_backward", _norm_backward),
        ("native_batch_norm_backward cudnn_batch_norm_backward", _norm_backward),
        ("batch_norm_backward", _norm_backward),
        ("_fused_rms_norm_backward", _per_input(9)),
        ("avg_pool2d_backward max_pool2d_with_indices_backward", _pool_backward(2)),
        ("avg_pool3d_backward max_pool3d_with_indices_backward", _pool_backward(3)),
        ("_adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward", _adaptive_pool_backward),
        ("adaptive_max_pool2d_backward adaptive_max_pool3d_backward", _per_input(1)),
        ("reflection_pad1d_backward reflection_pad2d_backward", _per_input(1)),
        ("replication_pad1d_backward replication_pad2d_backward", _per_input(1)),
        ("upsample_nearest1d_backward upsample_nearest2d_backward", _per_input(1)),
        ("upsample_linear1d_backward", _per_input(3)),
        ("upsample_bilinear2d_backward", _per_input(7)),
        ("upsample_bicubic2d_backward", _per_input(31)),
        ("grid_sampler_2d_backward", _per_input(14)),
        ("embedding_dense_backward", _per_input(1)),
        ("sort topk median nanmedian kthvalue mode", _sort),
        ("_fft_r2c _fft_c2r _fft_c2c", _fft),
    )
    for name in names.split()
}
