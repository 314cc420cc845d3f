"""The module that replaces a matched one: it contains the matched module and the block.

It presents the names of the matched module: parameters, buffers and state dict keep their keys,
and access to attributes and items is forwarded. The block adds its own keys under
`<path>.attnzoo`. The matched module remains an ordinary child, so that functions which replace
children, such as `nn.SyncBatchNorm.convert_sync_batchnorm`, still find it.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn

from .. import _torch

How = Literal["after", "before", "instead"]
HOST = "attnzoo_host"


class Site(NamedTuple):
    """How a block is combined with the matched module."""

    key: str  # the block's child name: attnzoo, attnzoo2, ...
    how: How
    residual: bool
    axes: tuple[int, int] | None  # channel axis of the network and of the block, where they differ

    @property
    def gain(self) -> str:
        """Name of the learned gain's parameter, which exists with `zero_init` only."""
        return f"{self.key}_gain"


class Inserted(_torch.Companion):
    """The matched module with a block after, before or instead of it.

    Args:
        host: the matched module.
        block: a module that takes and returns one tensor.
        site: how the two are combined.
        gain: initial value of a learned factor on the block's change; at zero the block has no
            effect.
    """

    attnzoo_site: Site

    def __init__(
        self, host: nn.Module, block: nn.Module, site: Site, gain: Tensor | None = None
    ) -> None:
        super().__init__()
        if site.how == "instead":  # kept for `remove`, not registered as a child
            vars(self)["attnzoo_aside"] = host
        else:
            self.add_module(HOST, host)
        self.add_module(site.key, block)
        if gain is not None:
            self.register_parameter(site.gain, nn.Parameter(gain))
        self.register_load_state_dict_pre_hook(_keys_to_the_host)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_keys_as_before)  # type: ignore[no-untyped-call]
        vars(self)["attnzoo_site"] = site  # last: from here on attribute access is forwarded

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        how = self.attnzoo_site.how
        if how == "before":
            return host(self)(self.attend(args[0]), *args[1:], **kwargs)
        if how == "instead":
            return self.attend(args[0])
        return self.attend(host(self)(*args, **kwargs))

    def attend(self, x: Tensor) -> Tensor:
        """Apply the block to `x`, with the residual and the gain of the site."""
        site = self.attnzoo_site
        y = with_channels_at(site.axes, self.get_submodule(site.key), x)
        gain = getattr(self, site.gain, None)
        if gain is not None:
            return x + gain.to(x.dtype) * (y if site.residual else y - x)  # type: ignore[no-any-return]
        return x + y if site.residual else y

    def companions(self) -> list[nn.Module]:
        """The matched module if it is not a child, so that it is moved and cast too."""
        return [host(self)] if self.attnzoo_site.how == "instead" else []

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
        found = super().state_dict(destination=destination, prefix=prefix, keep_vars=keep_vars)
        for entries in (found, _torch.metadata(found)):
            _drop_name(entries, prefix, HOST)
        return found

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "attnzoo_site" not in self.__dict__:  # not initialized yet, as in unpickling
                raise
            return getattr(host(self), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if "attnzoo_site" not in vars(self):
            super().__setattr__(name, value)
            return
        site = self.attnzoo_site
        own = name in vars(self) or name in (HOST, site.key, site.gain)
        if own or hasattr(type(self), name):
            super().__setattr__(name, value)
        elif isinstance(value, Tensor) and name in dict(host(self).named_parameters(recurse=False)):
            # torch.func.functional_call and torch.export replace parameters with plain tensors.
            _torch.put_parameter(host(self), name, value)
        else:
            setattr(host(self), name, value)


class InsertedSequence(Inserted):
    """`Inserted` for a matched module that has a length and items, such as `nn.Sequential`."""

    def __len__(self) -> int:
        return len(host(self))  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        return host(self)[index]  # type: ignore[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(host(self))  # type: ignore[call-overload,no-any-return]


def host(site: Inserted) -> nn.Module:
    """The matched module."""
    if site.attnzoo_site.how == "instead":
        return vars(site)["attnzoo_aside"]  # type: ignore[no-any-return]
    return getattr(site, HOST)  # type: ignore[no-any-return]


def enclosed(module: nn.Module) -> nn.Module:
    """The matched module under any number of insertions; any other module as it is."""
    while isinstance(module, Inserted):
        module = host(module)
    return module


def with_channels_at(axes: tuple[int, int] | None, block: nn.Module, x: Tensor) -> Tensor:
    """Apply the block to `x` with the channel axis moved to the block's, and move it back."""
    if axes is None:
        return block(x)  # type: ignore[no-any-return]
    theirs, ours = axes
    return block(x.movedim(theirs, ours)).movedim(ours, theirs).contiguous()  # type: ignore[no-any-return]


def ignore(module: nn.Module, *_: Any) -> None:
    """A hook that does nothing, but turns off the fast path of `nn.TransformerEncoderLayer`, which
    in eval mode reads the weights of its children and never calls them."""


def _drop_name(entries: dict[str, Any], prefix: str, name: str) -> None:
    """Remove `name` from the keys in which it follows the prefix, in place, keeping the order."""
    inner = prefix + name
    for key in [key for key in entries if key.startswith(prefix)]:
        value, plain = entries.pop(key), key
        if key == inner or key.startswith(f"{inner}."):
            plain = (prefix + key[len(inner) + 1 :]).removesuffix(".")
        entries[plain] = value


def _keys_to_the_host(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Pre-load hook: pass every key that is not the block's to the matched module."""
    inserted = cast(Inserted, module)
    site = inserted.attnzoo_site
    own = (f"{prefix}{site.key}.", f"{prefix}{site.gain}")
    theirs = [k for k in state_dict if k.startswith(prefix) and not k.startswith(own)]
    found = {key[len(prefix) :]: state_dict.pop(key) for key in theirs}
    if site.how != "instead":
        state_dict.update({f"{prefix}{HOST}.{key}": value for key, value in found.items()})
    elif found:
        extra = host(inserted).load_state_dict(found, strict=False).unexpected_keys
        unexpected.extend(prefix + key for key in extra)


def _keys_as_before(module: nn.Module, keys: Any) -> None:
    """Post-load hook: report missing and unexpected keys as they are named in the state dict."""
    for names in keys:
        names[:] = [name.replace(f"{HOST}.", "") for name in names]
