"""The state dict of a module with a block: the keys of the matched module are as they were."""

from typing import TYPE_CHECKING, Any, cast

from torch import nn

from .guard import HOST

if TYPE_CHECKING:
    from .host import Inserted


def drop_host(entries: dict[str, Any], prefix: str) -> None:
    """Remove the child's name from the keys in which it follows the prefix, keeping the order."""
    inner = prefix + HOST
    for key in [key for key in entries if key.startswith(prefix)]:
        value, plain = entries.pop(key), key
        if key == inner or key.startswith(f"{inner}."):
            plain = (prefix + key[len(inner) + 1 :]).removesuffix(".")
        entries[plain] = value


def keys_to_the_host(
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
    place = cast("Inserted", module)
    site = place.attnzoo_site
    own = (f"{prefix}{site.key}.", f"{prefix}{site.gain}")
    theirs = [k for k in state_dict if k.startswith(prefix) and not k.startswith(own)]
    found = {key[len(prefix) :]: state_dict.pop(key) for key in theirs}
    if site.how != "instead":
        state_dict.update({f"{prefix}{HOST}.{key}": value for key, value in found.items()})
    elif found:
        extra = place.companions()[0].load_state_dict(found, strict=False).unexpected_keys
        unexpected.extend(prefix + key for key in extra)


def keys_as_before(module: nn.Module, keys: Any) -> None:
    """Post-load hook: report missing and unexpected keys as they are named in the state dict."""
    for names in keys:
        names[:] = [name.replace(f"{HOST}.", "") for name in names]
