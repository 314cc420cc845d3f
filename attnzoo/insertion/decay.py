"""Which parameters of a network must not decay: those that it names itself, and those of blocks."""

from collections.abc import Callable

from torch import nn

from ..registry import entry_of
from .guard import HOST
from .host import Inserted, gain


class NoWeightDecay:
    """The method `no_weight_decay` of a network with inserted blocks, as timm's optimizers call it.

    It takes the place of the network's own, whose names it returns too.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self) -> set[str]:
        return no_weight_decay(self.model)


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of the parameters of a network that must not decay.

    These are the names that the network's own `no_weight_decay()` gives, if it has one, and those
    of every block in it: inserted blocks and their gains, and blocks that a builder of timm or your
    own code put there. After `insert` the network's `no_weight_decay()` returns the same, so that
    `timm.optim.create_optimizer_v2(model, ...)` finds them by itself. Elsewhere:

        exempt = attnzoo.no_weight_decay(model)
        named = list(model.named_parameters())
        groups = [
            {"params": [p for name, p in named if name not in exempt]},
            {"params": [p for name, p in named if name in exempt], "weight_decay": 0.0},
        ]

    Raises:
        TypeError: `model` is not an `nn.Module`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be an nn.Module, not {type(model).__name__}; for an optimizer pass the "
            "network that it trains"
        )
    names = {*_own(model)()}
    for path, module in model.named_modules():
        prefix = "".join(f"{part}." for part in path.split(".") if part not in ("", HOST))
        if isinstance(module, Inserted):
            site = module.attnzoo_site
            block = getattr(module, site.key)
            names |= {f"{prefix}{site.key}.{name}" for name in _own(block)()}
            if gain(module) is not None:
                names.add(prefix + site.gain)
        elif entry_of(module) is not None:
            names |= {prefix + name for name in _own(module)()}
    return names


def _own(module: nn.Module) -> Callable[[], set[str]]:
    """The module's own method, or one that names no parameter."""
    method = getattr(module, "no_weight_decay", set)
    if isinstance(method, NoWeightDecay):
        unbound = getattr(type(module), "no_weight_decay", None)
        return set if unbound is None else unbound.__get__(module)
    return method if callable(method) else set
