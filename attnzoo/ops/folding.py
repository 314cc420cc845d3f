"""Whether a layer may be computed in another order than its own call."""

from torch import Tensor, nn

from .. import _torch


def is_plain(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the layer does nothing but what `kind` does with its parameters.

    A layer that is hooked, wrapped, parametrized, quantized, sharded or replaced is not: it is
    called, so that what was added to it acts.
    """
    return (
        type(layer) is kind
        and not _torch.is_hooked(layer)
        and all(type(p) in (Tensor, nn.Parameter) for p in layer.parameters())
    )
