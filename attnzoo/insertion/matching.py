"""Which modules of a network a pattern matches."""

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeAlias

from torch import nn

from .host import Inserted, enclosed

Where: TypeAlias = str | re.Pattern[str] | Callable[[str, nn.Module], bool] | Sequence[str]


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every path of the network with its module.

    A shared module is listed at each of its paths; inserted blocks are left out. The module at the
    path of an insertion is the outermost `Inserted`.
    """
    seen: set[str] = set()
    blocks: tuple[str, ...] = ()
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Inserted):
            blocks += (f"{path}.{module.attnzoo_site.key}".lstrip("."),)
        inside = any(path == block or path.startswith(f"{block}.") for block in blocks)
        if path not in seen and not inside:
            seen.add(path)
            yield path, module


def ancestors(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules that contain the one at `path`, outermost first."""
    names = path.split(".")
    return [enclosed(model.get_submodule(".".join(names[:i]))) for i in range(len(names))]


def paths_of(model: nn.Module, module: nn.Module) -> list[str]:
    """Every path at which a module is."""
    return [path for path, found in named_modules(model) if found is module]


def matches(model: nn.Module, where: Where, shared: bool = False) -> dict[str, nn.Module]:
    """The matched modules by path; of nested matches of a glob, the outermost.

    With `shared` a module at several paths is listed once, at the first of those that match.

    Raises:
        ValueError: nothing matches, a matched module has several paths and not `shared`, or matches
            of anything but one glob are nested.
        TypeError: `where` is none of the four.
    """
    modules: dict[str, nn.Module] = dict(named_modules(model))
    if isinstance(where, nn.Module):
        own = [
            repr(path) for path, module in modules.items() if enclosed(module) is enclosed(where)
        ]
        hint = f"; this one is {own[0]}" if own else "; this one is not part of the model"
        raise TypeError(f"where must be a path, not a module ({type(where).__name__}){hint}")
    if isinstance(where, (list, tuple)):
        matched = _listed(where, modules)
    else:
        matched = _matching_paths(where, modules)
    if not matched:
        raise ValueError(_no_match(where, modules))
    nested = {p for p in matched for other in matched if p.startswith(f"{other}.")}
    if nested and not isinstance(where, str):
        inner = min(nested)
        outer = next(p for p in matched if inner.startswith(f"{p}."))
        raise ValueError(
            f"where={_shown(where)} matches {inner!r} and {outer!r}, which it is inside of; "
            "match one of the two"
        )
    found = {path: modules[path] for path in matched if path not in nested}
    if not shared:
        _refuse_shared(modules, found)
    first = {id(module): path for path, module in reversed(found.items())}
    return {path: module for path, module in found.items() if first[id(module)] == path}


def _listed(where: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """The paths of a list, each a path or a glob that matches something, in the network's order."""
    found: set[str] = set()
    for item in where:
        if not isinstance(item, str):
            raise TypeError(
                f"where={list(where)!r} must list paths, such as ['layer1', 'layer2.0.bn2'], not a "
                f"{type(item).__name__}"
            )
        matched = _matching_paths(item, modules)
        if not matched:
            raise ValueError(_no_match(item, modules))
        found.update(matched)
    return [path for path in modules if path in found]


def _matching_paths(where: Where, modules: Mapping[str, nn.Module]) -> list[str]:
    if isinstance(where, str):
        return [p for p in modules if p and fnmatch.fnmatchcase(p, where)]
    if isinstance(where, re.Pattern) and isinstance(where.pattern, str):
        return [p for p in modules if p and where.fullmatch(p)]
    if callable(where) and not isinstance(where, type):
        return [p for p, module in modules.items() if p and where(p, enclosed(module))]
    raise TypeError(
        f"where={where!r} must be a glob string, a list of them, an re.Pattern of str or a "
        f"callable (path, module) -> bool, such as lambda path, module: isinstance(module, "
        f"nn.Conv2d), not "
        f"{type(where).__name__}"
    )


def _no_match(where: Where, modules: Mapping[str, nn.Module]) -> str:
    text = f"where={_shown(where)} matches none of the model's {len(modules) - 1} modules"
    if isinstance(where, (list, tuple)):
        return f"where={where!r} lists no path; list one or more, such as ['layer1', 'layer2']"
    if where == "":
        return f"{text}; the model itself cannot be replaced in place"
    if callable(where):
        return f"{text}; list(model.named_modules()) shows what there is"
    word = where.pattern if isinstance(where, re.Pattern) else str(where)
    near = get_close_matches(word, [p for p in modules if p], n=3, cutoff=0)
    return f"{text}; the nearest paths are {', '.join(map(repr, near))}"


def _shown(where: Where) -> str:
    return repr(where.pattern if isinstance(where, re.Pattern) else where)


def _refuse_shared(modules: Mapping[str, nn.Module], found: Mapping[str, nn.Module]) -> None:
    paths: dict[int, list[str]] = {}
    for path, module in modules.items():
        paths.setdefault(id(module), []).append(path)
    for path, module in found.items():
        shared = paths[id(module)]
        if len(shared) > 1:
            raise ValueError(
                f"{path!r} is one module at {len(shared)} paths, {', '.join(map(repr, shared))}; "
                "a block there would be shared too: pass shared=True for that, or give each path a "
                "module of its own, such as copy.deepcopy's, first"
            )
