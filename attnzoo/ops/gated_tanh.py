"""The gated tanh unit, applied to a tensor whose last axis contains signal and gate."""

from torch import Tensor


def gated_tanh(u: Tensor) -> Tensor:
    """(..., 2 C) to (..., C): tanh of the first half times sigmoid of the last half."""
    signal, gate = u.chunk(2, -1)
    return signal.tanh() * gate.sigmoid()
