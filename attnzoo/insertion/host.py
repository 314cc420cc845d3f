"""The module that stands in the place of a matched one: the matched module, and a block beside it.

To everything that goes by names it is the matched module: parameters, buffers and state dict keep
their keys, attributes and items are read and written through. The block adds keys of its own under
`<path>.attnzoo`. The matched module stays an ordinary child, so that what swaps children, such as
`nn.SyncBatchNorm.convert_sync_batchnorm`, finds it.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

How = Literal["after", "before", "instead"]
HOST = "attnzoo_host"


class Site(NamedTuple):
    """How a block joins the matched module."""

    key: str  # the block's child name: attnzoo, attnzoo2, ...
    how: How
    residual: bool
    axes: tuple[int, int] | None  # channel axis of the network and of the block, where they differ


class Inserted(nn.Module):
    """The matched module with a block after, before or instead of it.

    Args:
        host: the matched module.
        block: takes and gives one tensor.
        site: how the two are joined.
        gain: a learned factor of what the block adds; at zero the network is as it was.
    """

    def __init__(
        self, host: nn.Module, block: nn.Module, site: Site, gain: Tensor | None = None
    ) -> None:
        super().__init__()
        if site.how == "instead":  # kept for `remove`, no part of the network until then
            object.__setattr__(self, "_attnzoo_aside", host)
        else:
            self.add_module(HOST, host)
        self.add_module(site.key, block)
        if gain is not None:
            self.register_parameter(f"{site.key}_gain", nn.Parameter(gain))
        self.register_load_state_dict_post_hook(_under_their_own_names)  # type: ignore[no-untyped-call]
        object.__setattr__(self, "_attnzoo_site", site)  # last: from here on names lead to the host

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        how = self._attnzoo_site.how
        if how == "before":
            return self._modules[HOST](self._attend(args[0]), *args[1:], **kwargs)  # type: ignore[misc]
        if how == "instead":
            return self._attend(args[0])
        return self._attend(self._modules[HOST](*args, **kwargs))  # type: ignore[misc]

    def _attend(self, x: Tensor) -> Tensor:
        key, _, residual, axes = self._attnzoo_site
        block, gain = self._modules[key], self._parameters.get(f"{key}_gain")
        y: Tensor = moved(block, x, axes)  # type: ignore[arg-type]
        if gain is not None:
            return x + gain.to(x.dtype) * (y if residual else y - x)
        return x + y if residual else y

    def _apply(self, fn: Any, recurse: bool = True) -> "Inserted":
        if recurse and self._attnzoo_site.how == "instead":
            host(self)._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def train(self, mode: bool = True) -> "Inserted":
        super().train(mode)
        host(self).train(mode)
        return self

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, child in self.named_children():
            path = prefix if name == HOST else f"{prefix}.{name}".lstrip(".")
            yield from child.named_modules(memo, path, remove_duplicate)

    def state_dict(
        self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> Any:
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        for name, child in self.named_children():
            path = prefix if name == HOST else f"{prefix}{name}."
            child.state_dict(destination=destination, prefix=path, keep_vars=keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        return destination

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        key = f"{prefix}{self._attnzoo_site.key}"
        ours = (f"{key}.", f"{key}_gain")
        theirs = [k for k in state_dict if k.startswith(prefix) and not k.startswith(ours)]
        found = {k[len(prefix) :]: state_dict.pop(k) for k in theirs}
        if self._attnzoo_site.how != "instead":
            state_dict.update({f"{prefix}{HOST}.{k}": value for k, value in found.items()})
        elif found:
            extra = host(self).load_state_dict(found, strict=False).unexpected_keys
            rest[3].extend(prefix + k for k in extra)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_attnzoo_site" not in self.__dict__:  # half made, by an unpickler say
                raise
            return getattr(host(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = (self.__dict__, self._modules, self._parameters)
        if hasattr(type(self), name) or any(name in names for names in own):
            super().__setattr__(name, value)
        elif isinstance(value, Tensor) and name in host(self)._parameters:
            # torch.func.functional_call and torch.export put plain tensors in a parameter's place.
            host(self)._parameters[name] = value  # type: ignore[assignment]
        else:
            setattr(host(self), name, value)


class InsertedSequence(Inserted):
    """The same around a module that has a length and items, such as `nn.Sequential`."""

    def __len__(self) -> int:
        return len(host(self))  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        return host(self)[index]  # type: ignore[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(host(self))  # type: ignore[call-overload,no-any-return]


def host(site: Inserted) -> nn.Module:
    """The matched module."""
    if site._attnzoo_site.how == "instead":
        return site.__dict__["_attnzoo_aside"]  # type: ignore[no-any-return]
    return site._modules[HOST]  # type: ignore[return-value]


def innermost(module: nn.Module) -> nn.Module:
    """The matched module under any number of insertions; any other module as it is."""
    while isinstance(module, Inserted):
        module = host(module)
    return module


def moved(block: nn.Module, x: Tensor, axes: tuple[int, int] | None) -> Tensor:
    """The block on `x` with its channels where the block wants them, and back."""
    if axes is None:
        return block(x)  # type: ignore[no-any-return]
    theirs, ours = axes
    return block(x.movedim(theirs, ours)).movedim(ours, theirs).contiguous()  # type: ignore[no-any-return]


def _under_their_own_names(module: nn.Module, keys: Any) -> None:
    for names in keys:
        names[:] = [name.replace(f"{HOST}.", "") for name in names]


def past_fused_paths(module: nn.Module, *_: Any) -> None:
    """A hook that does nothing: torch's encoder layer reads the weights of children without one
    and, in eval mode, never calls them."""
