"""Convolution of channels-last sequences along time, without transposing them."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from .folding import is_plain

Segments = Sequence[int] | None

_SMALL = 20_480  # numbers of one image up to which torch's own convolution serves on the CPU


def time_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """(N, T, C) to (N, T', C') with a weight (C', C, k) as `nn.Conv1d` has it.

    In memory a sequence (N, T, C) is a channels-last image (N, C, 1, T), which the two-dimensional
    convolution reads without a copy; the one-dimensional one would make two. A few numbers are one
    image, which torch convolves without a library's overhead.
    """
    few = x.device.type == "cpu" and 0 < x.numel() <= _SMALL
    if few and not torch.compiler.is_compiling():
        rows = x.permute(2, 0, 1).unsqueeze(0)  # 1 C N T
        y = torch.conv2d(rows, weight.unsqueeze(2), bias, (1, stride), (0, padding), (1, dilation))
        return y.squeeze(0).permute(1, 2, 0)
    image = x.mT.unsqueeze(2)  # N C 1 T
    y = torch.conv2d(image, weight.unsqueeze(2), bias, (1, stride), (0, padding), (1, dilation))
    return y.squeeze(2).mT  # N T' C'


def apply_in_time(conv: nn.Module, x: Tensor, segments: Segments = None) -> Tensor:
    """(N, T, C) to (N, T', C') by an `nn.Conv1d`, which is called unless it is plain.

    With their lengths the convolution does not cross from one of the `segments` to the next.
    """
    if segments is not None:
        return torch.cat(
            [apply_in_time(conv, part) for part in torch.split(x, list(segments), 1)], 1
        )
    if not _is_dense(conv):
        y: Tensor = conv(x.mT).mT
        return y
    return time_conv(x, conv.weight, conv.bias, **_settings(conv))


def apply_both_in_time(
    a: nn.Conv1d, b: nn.Conv1d, x: Tensor, segments: Segments = None
) -> tuple[Tensor, Tensor]:
    """`apply_in_time` of two layers on the same series, as one convolution where it can be."""
    alike = _is_dense(a) and _is_dense(b) and _settings(a) == _settings(b)
    if segments is not None or not alike or a.bias is None or b.bias is None:
        return apply_in_time(a, x, segments), apply_in_time(b, x, segments)
    weight, bias = torch.cat((a.weight, b.weight)), torch.cat((a.bias, b.bias))
    y = time_conv(x, weight, bias, **_settings(a))
    return y[..., : a.out_channels], y[..., a.out_channels :]


def _is_dense(conv: nn.Module) -> TypeGuard[nn.Conv1d]:
    """Whether the layer is plainly a convolution of all channels, with zeros beyond the ends."""
    return (
        isinstance(conv, nn.Conv1d)
        and is_plain(conv, nn.Conv1d, groups=1, padding_mode="zeros")
        and isinstance(conv.padding, tuple)
    )


def _settings(conv: nn.Conv1d) -> dict[str, int]:
    padding = int(conv.padding[0])  # a tuple of one
    return {"stride": conv.stride[0], "padding": padding, "dilation": conv.dilation[0]}
