"""What keeps other tools from losing a block, or from running a module without its block.

Tools that fold layers for inference read the weights of two layers and put one in their place. They
do it by methods of the modules that contain the layers (`fuse`, `reparameterize`, ...), by
functions that walk a network, or by assigning a new child. Each works on a network with blocks, or
raises an error before it changes anything.
"""

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import _torch

if TYPE_CHECKING:
    from .host import Inserted

HOST = "attnzoo_host"  # the matched module's name among the children of an `Inserted`
# Methods by which timm, ultralytics and the authors of re-parameterized networks fold layers.
FOLDING = ("fuse", "fuse_convs", "reparameterize", "switch_to_deploy")
_folding: ContextVar[str] = ContextVar("folding", default="")


def let_through(place: "Inserted", host: nn.Module, name: str) -> Any:
    """An attribute of the matched module, where it does not bypass the block."""
    value = getattr(host, name)
    if name in FOLDING and callable(value):
        raise AttributeError(
            f"{type(place).__name__!r} has no {name!r}: {type(host).__name__} has, and "
            f"{_named(place)}; its own is that of the child attnzoo_host"
        )
    if name.startswith("forward_") and callable(value):
        return functools.partial(_refuse_call, place, host, name)
    if torch.compiler.is_compiling():
        return value
    folded = isinstance(value, Tensor) and bool(_folding.get())
    if folded or (name == "eps" and isinstance(host, _torch.BatchNorm)):
        raise ValueError(_unfoldable(place, host, name))
    return value


def _refuse_call(place: "Inserted", host: nn.Module, name: str, *_: Any, **__: Any) -> Any:
    raise ValueError(
        f"{name}() runs {type(host).__name__} without {_named(place)}; call the module itself, or "
        f"insert the block inside of it"
    )


def refuse_new_parameter(place: "Inserted", host: nn.Module, name: str, value: Tensor) -> None:
    """A layer without a bias gets one when another layer is folded into it."""
    if isinstance(value, nn.Parameter) and _torch.parameters_by_name(host)[name] is None:
        raise ValueError(_unfoldable(place, host, name))


def refuse_deletion(place: "Inserted", host: nn.Module, name: str) -> None:
    """A parametrization takes the tensor's place, and must be registered on the layer itself."""
    if name in _torch.parameters_by_name(host) or name in _torch.buffers_by_name(host):
        raise ValueError(
            f"{name!r} belongs to {type(host).__name__}, which has {_named(place)}; change that "
            "module itself: its path ends in .attnzoo_host"
        )


def _unfoldable(place: "Inserted", host: nn.Module, name: str) -> str:
    kind = type(host).__name__
    remedy = (
        "insert the block outside of the layers that are folded, or call attnzoo.remove first. "
        f"The layer itself is the child attnzoo_host: to read or set its {name!r} for another "
        "reason, use that"
    )
    tool = _folding.get()
    if tool:
        what = f"{tool} folds {kind} with its neighbor"
    else:
        what = f"{name!r} of {kind} is read or set by functions that fold it with its neighbor"
    return f"{what}, and {_named(place)} would be lost or moved; {remedy}"


def _named(place: "Inserted") -> str:
    site = place.attnzoo_site
    where = {"after": "after it", "before": "before it", "instead": "instead of it"}[site.how]
    return f"a block {where} ({type(getattr(place, site.key)).__name__})"


class Guarded:
    """A method of a module that contains blocks: it folds all or nothing, and keeps the blocks."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        method = getattr(type(self.module), self.name)
        if _folding.get():
            return method(self.module, *args, **kwargs)
        with folding(f"{type(self.module).__name__}.{self.name}()"):
            self._try(*args, **kwargs)
            return method(self.module, *args, **kwargs)

    def _try(self, *args: Any, **kwargs: Any) -> None:
        """Fold a copy, and raise `ValueError` where that fails or loses a block."""
        trial = copy.deepcopy(self.module)
        try:
            result = getattr(type(trial), self.name)(trial, *args, **kwargs)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"{_folding.get()} does not take the blocks inside: {type(error).__name__}: "
                f"{error}; call attnzoo.remove first"
            ) from error
        kept = result if isinstance(result, nn.Module) else trial
        lost = count(self.module) - count(kept)
        if lost > 0:
            raise ValueError(
                f"{_folding.get()} would lose {lost} inserted block{'s' * (lost > 1)}; insert "
                "outside of the layers that are folded, or call attnzoo.remove first"
            )


@contextmanager
def folding(tool: str) -> Iterator[None]:
    """Within it, reading the weights of a module that has a block is an error."""
    token = _folding.set(tool)
    try:
        yield
    finally:
        _folding.reset(token)


def protect(module: nn.Module) -> None:
    """Guard the folding methods of a module that contains blocks."""
    for name in FOLDING:
        if callable(getattr(type(module), name, None)):
            vars(module)[name] = Guarded(module, name)


def release(module: nn.Module) -> None:
    """Take off what `protect` put on."""
    for name in [name for name, value in vars(module).items() if isinstance(value, Guarded)]:
        del vars(module)[name]


def count(module: nn.Module | None) -> int:
    """The number of inserted blocks in a module."""
    return 0 if module is None else sum(isinstance(m, _torch.Facade) for m in module.modules())


@functools.cache
def watch_replacements() -> None:
    """From now on, a child with blocks is only replaced by a module that has as many."""
    nn.modules.module.register_module_module_registration_hook(_refuse_loss)


def _is_of_peft(module: nn.Module | None) -> bool:
    return type(module).__module__.startswith("peft.")


def _refuse_loss(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    current = _torch.children_by_name(parent).get(name)
    if current is None or current is new:
        return
    if name == HOST and isinstance(parent, _torch.Facade) and _is_of_peft(new):
        raise ValueError(
            f"peft would freeze the adapter ({type(new).__name__}) of a module with a block: it "
            f"compares paths of modules, here {HOST}, with names of parameters. Add the adapters "
            "first and insert the blocks afterwards, or adapt other layers"
        )
    lost = count(current) - count(new)
    if lost > 0:
        many = "an inserted block" if lost == 1 else f"{lost} inserted blocks"
        raise ValueError(
            f"{name!r} of {type(parent).__name__} holds {many}, which its replacement "
            f"({type(new).__name__}) would lose; call attnzoo.remove first, or replace the layer "
            f"inside, attnzoo_host; `del module.{name}` takes out both"
        )
