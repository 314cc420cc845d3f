"""The module that replaces a matched one: it contains the matched module and the block.

It presents the names of the matched module: parameters, buffers and state dict keep their keys,
and reading attributes and items is forwarded. The block adds its own keys under `<path>.attnzoo`.
The matched module is an ordinary child, `<path>.attnzoo_host`, so that functions which replace
modules find it and put theirs in its place. What would compute or rewrite the matched module
without the block is refused, see `guard.py`.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from .. import _torch
from ..validation import calls
from . import guard
from .arrangement import AS_IT_IS, Arrangement
from .guard import HOST
from .state import drop_host, keys_as_before, keys_to_the_host

How = Literal["after", "before", "instead"]


class Site(NamedTuple):
    """How a block is combined with the matched module."""

    key: str  # the block's child name: attnzoo, attnzoo2, ...
    how: How
    residual: bool
    arrangement: Arrangement = AS_IT_IS

    @property
    def gain(self) -> str:
        """Name of the learned gain's parameter, which exists with `zero_init` only."""
        return f"{self.key}_gain"


class Inserted(_torch.Facade):
    """The matched module with a block after, before or instead of it.

    Args:
        host: the matched module.
        block: a module that takes and returns one tensor.
        site: how the two are combined.
        gain: initial value of a learned factor on the block's change; at zero the block has no
            effect.
    """

    attnzoo_site: Site

    def __new__(cls, *_: Any, **__: Any) -> "Inserted":  # noqa: PYI034
        guard.watch_replacements()  # here, since copies and unpickled networks come this way too
        return super().__new__(cls)

    def __init__(
        self, host: nn.Module, block: nn.Module, site: Site, gain: Tensor | None = None
    ) -> None:
        super().__init__()
        if site.how == "before":
            self.add_module(site.key, block)  # children are listed in the order of their calls
        if site.how == "instead":  # kept for `remove`, not registered as a child
            vars(self)["attnzoo_aside"] = host
        else:
            self.add_module(HOST, host)
        if site.how != "before":
            self.add_module(site.key, block)
        if gain is not None:
            self.register_parameter(site.gain, nn.Parameter(gain))
        self.register_load_state_dict_pre_hook(keys_to_the_host)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(keys_as_before)  # type: ignore[no-untyped-call]
        vars(self)["attnzoo_site"] = site  # last: from here on attribute access is forwarded

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        how = self.attnzoo_site.how
        if how == "before":
            return host(self)(_attend(self, args[0]), *args[1:], **kwargs)
        if how == "instead":
            return _attend(self, args[0])
        return _attend(self, host(self)(*args, **kwargs))

    def fronted(self) -> nn.Module | None:
        """The matched module where it is a child, so that its tensors are listed here."""
        return _torch.children_by_name(self).get(HOST)

    def companions(self) -> list[nn.Module]:
        """The matched module if it is not a child, so that it is moved and cast too."""
        return [] if self.fronted() is not None else [host(self)]

    def train(self, mode: bool = True) -> "Inserted":
        super().train(mode)
        host(self).train(mode)
        return self

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The modules inside the matched one at the paths they had before, and itself at its own.

        Without `remove_duplicate` it is left out: its tensors are listed by this module.
        """
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        inner = f"{prefix}.{HOST}".lstrip(".")
        for name, child in self.named_children():
            if name != HOST:
                yield from child.named_modules(
                    memo, f"{prefix}.{name}".lstrip("."), remove_duplicate
                )
                continue
            for path, module in child.named_modules(memo, prefix, remove_duplicate):
                if module is not child and not path.startswith(inner):
                    yield path, module
                elif remove_duplicate:  # the matched module, or that of an insertion inside
                    yield inner + path[len(prefix) :], module

    def state_dict(
        self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        found = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        for entries in (found, _torch.metadata(found)):
            drop_host(entries, prefix)
        return found

    def __prepare_scriptable__(self) -> Any:
        raise ValueError(calls.UNSCRIPTABLE.format("a network with inserted blocks"))

    def __getattr__(self, name: str) -> Any:
        if torch.compiler.is_compiling():  # torch 2.6 cannot trace the properties of a facade
            children = self.__dict__["_modules"]
            if name in children:
                return children[name]
            if HOST in children and hasattr(children[HOST], name):
                return getattr(children[HOST], name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "attnzoo_site" not in self.__dict__:  # not initialized yet, as in unpickling
                raise
            return guard.let_through(self, host(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._owns(name):
            super().__setattr__(name, value)
        elif self.is_replica():
            vars(self)[name] = value
        elif isinstance(value, Tensor) and name in _torch.parameters_by_name(host(self)):
            guard.refuse_new_parameter(self, host(self), name, value)
            if isinstance(value, nn.Parameter):
                setattr(host(self), name, value)
            else:  # torch.func.functional_call and torch.export put plain tensors there
                _torch.put_parameter(host(self), name, value)
        else:
            setattr(host(self), name, value)

    def __delattr__(self, name: str) -> None:
        if self._owns(name):
            super().__delattr__(name)
            return
        guard.refuse_deletion(self, host(self), name)
        delattr(host(self), name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if self._owns(name):  # the matched module's are listed by this one too: not through super
            self.own_parameters()[name] = param
        else:
            host(self).register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        host(self).register_buffer(name, tensor, persistent)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        if self._owns(name):
            super().add_module(name, module)
        else:
            host(self).add_module(name, module)

    def _owns(self, name: str) -> bool:
        """Whether a name is this module's own, and not the matched module's."""
        site = self.__dict__.get("attnzoo_site")
        if site is None or name in self.__dict__ or name in (HOST, site.key, site.gain):
            return True
        return hasattr(type(self), name)


class InsertedSequence(Inserted):
    """`Inserted` for a matched module that has a length and items, such as `nn.Sequential`."""

    def __len__(self) -> int:
        return len(host(self))  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        """An item or a slice, with the block where it follows or precedes one of them."""
        if not isinstance(enclosed(self), nn.Sequential):
            return host(self)[index]  # type: ignore[index]
        found = [*self][index]
        if not isinstance(index, slice):
            return found
        cut = any(isinstance(item, Item) for item in found)
        return nn.Sequential(*found) if cut else host(self)[index]  # type: ignore[index]

    def __setitem__(self, index: Any, module: nn.Module) -> None:
        host(self)[index] = module  # type: ignore[operator]

    def __delitem__(self, index: Any) -> None:
        del cast(Any, host(self))[index]

    def __add__(self, other: nn.Sequential) -> nn.Sequential:
        return nn.Sequential(*self, *other)

    def __iadd__(self, other: nn.Sequential) -> "InsertedSequence":  # noqa: PYI034
        for module in other:
            cast(Any, host(self)).append(module)
        return self

    def __iter__(self) -> Iterator[Any]:
        """The items; the block goes with the item that it follows or precedes.

        Gradient checkpointing calls the items of a sequence one by one.
        """
        items = [*cast(Any, host(self))]
        site = self.attnzoo_site
        if not items or not isinstance(enclosed(self), nn.Sequential) or site.how == "instead":
            return iter(items)
        at = 0 if site.how == "before" else -1
        view = (SequenceItem if hasattr(items[at], "__len__") else Item)(
            items[at], getattr(self, site.key), site
        )
        if gain(self) is not None:
            view.register_parameter(site.gain, gain(self))
        items[at] = view
        return iter(items)


class Item(Inserted):
    """An item of a sequence that has a block, with that block: what iterating over it gives.

    It is made anew each time, so that hooks are registered on the item itself.
    """

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        return host(self).register_forward_hook(*args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        return host(self).register_forward_pre_hook(*args, **kwargs)

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> Any:
        return host(self).register_full_backward_hook(*args, **kwargs)

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        return host(self).register_full_backward_pre_hook(*args, **kwargs)


class SequenceItem(Item, InsertedSequence):
    """`Item` for an item that has a length and items itself."""


def host(site: Inserted) -> nn.Module:
    """The matched module."""
    if site.attnzoo_site.how == "instead":
        return site.__dict__["attnzoo_aside"]  # type: ignore[no-any-return]
    return getattr(site, HOST)  # type: ignore[no-any-return]


def enclosed(module: nn.Module) -> nn.Module:
    """The matched module under any number of insertions; any other module as it is."""
    while isinstance(module, Inserted):
        module = host(module)
    return module


def gain(site: Inserted) -> Any:
    """The learned gain, or None without `zero_init`."""
    own = [*site.own_parameters().values()]  # it is the only one, if it exists
    if own:  # torch.compile of torch 2.6 cannot trace the facade's lookup by name
        return own[0]
    return getattr(site, site.attnzoo_site.gain, None) if site.is_replica() else None


def _attend(place: Inserted, x: Tensor) -> Tensor:
    """Apply the block to `x`, with the residual and the gain of the site."""
    site = place.attnzoo_site
    y = site.arrangement.apply(getattr(place, site.key), x)
    factor = gain(place)
    if factor is not None:
        return x + factor.to(x.dtype) * (y if site.residual else y - x)  # type: ignore[no-any-return]
    return x + y if site.residual else y


def ignore(module: nn.Module, *_: Any) -> None:
    """A hook that does nothing, but turns off the fast path of `nn.TransformerEncoderLayer`, which
    in eval mode reads the weights of its children and never calls them."""
