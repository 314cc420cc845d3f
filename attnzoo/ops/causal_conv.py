"""A causal depthwise convolution along the steps, one short filter for each channel."""

import torch.nn.functional as F
from torch import Tensor


def causal_conv(u: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y_t = bias + sum_j w_j u_{t - (k - 1) + j}, with zeros before the first step.

    Args:
        u: (N, T, E).
        weight: (E, 1, k), as a depthwise `nn.Conv1d` has it.
        bias: (E,).
    """
    padded = F.pad(u.mT, (weight.shape[2] - 1, 0))
    return F.conv1d(padded, weight, bias, groups=weight.shape[0]).mT
