"""The counters of `attnzoo.cost`, applied to a block and its example inputs."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..autograd import reference_forms
from ..cost import counter
from ..cost.fvcore import FvcoreCount, fvcore_macs
from ..cost.operators import Work
from ..registry import Inputs
from .inputs import arguments, call, samples, tensors


def work(block: nn.Module, inputs: Inputs) -> Work:
    """Count one sample's forward pass, in eval mode and by the block's reference form.

    Only the first sample is run, so that work done once per call is counted in full. Attention is
    counted as its matrix products and its softmax.

    Raises:
        UncountedOperatorError: an operator without a cost formula is called.
    """
    sample, products = samples(block, inputs, slice(1)), sdpa_kernel(SDPBackend.MATH)
    with counter.evaluating(block), torch.no_grad(), reference_forms(), products:
        return counter.count(lambda: call(block, sample))


def fvcore_count(block: nn.Module, inputs: Inputs) -> FvcoreCount:
    """fvcore's count of one sample's forward pass in eval mode, and what it misses."""
    args, kwargs = arguments(block, samples(block, inputs, slice(1)))
    with counter.evaluating(block), reference_forms():
        return fvcore_macs(block, tuple(args), kwargs)


def saved_bytes(block: nn.Module, inputs: Inputs) -> int:
    """Bytes that autograd saves in a training step, without inputs, weights and outputs."""
    outside = (*block.parameters(), *block.buffers(), *tensors(inputs))
    return counter.saved_bytes(lambda: call(block, inputs), outside)
