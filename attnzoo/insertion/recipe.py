"""A recipe: where blocks stand in a network, as JSON, and the same blocks put back from it."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from ..registry import JSON, build
from ..validation import check, messages
from . import placing
from .arrangement import Arrangement
from .host import How
from .matching import named_modules

_REQUIRED = ("path", "block", "config")
_OPTIONAL = ("how", "residual", "zero_init", "arrangement")


class Place(NamedTuple):
    """One block of a recipe."""

    path: str
    block: str  # a name of `attnzoo.names()`, or "package:Class" of a module of the user's
    config: Mapping[str, Any]
    how: How = "after"
    residual: bool = False
    zero_init: bool = False
    arrangement: Arrangement = Arrangement()

    def as_json(self) -> dict[str, JSON]:
        """The place as JSON values, as they are after a round trip through a file."""
        fields = {**self._asdict(), "arrangement": self.arrangement._asdict()}
        found: dict[str, JSON] = json.loads(json.dumps(fields))
        return found


def apply(
    model: nn.Module, recipe: Sequence[Mapping[str, Any]], *, module: nn.Module | None = None
) -> nn.Module:
    """Put the blocks of a recipe into a network, in place, so that a checkpoint can be loaded.

    The network is one that was built like the one of the insertion; no example input is needed. The
    weights of the blocks are new: load the checkpoint afterwards.

    Args:
        model: the network, without the blocks.
        recipe: `report.recipe` of an insertion, or those of several, in their order, as one list.
        module: for a recipe of modules of your own, such a module; each place gets a copy.

    Returns:
        The network.

    Raises:
        ValueError: a path or a block does not exist, or a block's config is not legal; the network
            is not changed.
        TypeError: an argument has the wrong type.
    """
    placing.check_model(model)
    places = _read(recipe)
    paths = dict(named_modules(model))
    blocks = [_block(paths, place, module) for place in places]
    done: list[tuple[str, nn.Module]] = []
    try:
        for place, block in zip(places, blocks, strict=True):
            matched = _matched(model, place.path)
            placing.put(model, place, block, *_kind(model, matched))
            done.append((place.path, matched))
    except Exception:
        for path, matched in reversed(done):
            placing.replace(model, path, matched)
        raise
    return model


def _read(recipe: Any) -> list[Place]:
    if isinstance(recipe, (str, bytes)) or not isinstance(recipe, Sequence):
        raise TypeError(
            f"recipe={messages.shown(recipe)} must be the list that report.recipe is; of a file: "
            "json.loads(path.read_text())"
        )
    places = []
    for item in recipe:
        given = item.keys() if isinstance(item, Mapping) else ()
        if not set(_REQUIRED) <= set(given) <= {*_REQUIRED, *_OPTIONAL}:
            raise ValueError(
                f"a place of the recipe is {messages.shown(item)}; it must have "
                f"{', '.join(_REQUIRED)}, and may have {', '.join(_OPTIONAL)}, as those of "
                "report.recipe have"
            )
        view = item.get("arrangement", {})
        _check_place(item, view)
        pairs = {key: tuple(view[key]) for key in ("axes", "grid") if view.get(key)}
        places.append(Place(**{**item, "arrangement": Arrangement(**{**view, **pairs})}))
    return places


def _check_place(item: Mapping[str, Any], view: Any) -> None:
    """Raises ValueError or TypeError unless the values of a place are what `as_json` writes."""
    path = item["path"]
    if not (isinstance(path, str) and path):
        raise ValueError(
            f"the recipe has path={messages.shown(path)}; it must be that of a module inside the "
            "network, such as 'layer1.0.bn2'"
        )
    check.choice("how", item.get("how", "after"), get_args(How))
    check.flag(residual=item.get("residual", False), zero_init=item.get("zero_init", False))
    if not isinstance(item["config"], Mapping):
        raise TypeError(
            f"the recipe has config={messages.shown(item['config'])} at {path!r}; it must be a "
            "dict of the block's keywords, such as {'c': 64}"
        )
    if not isinstance(view, Mapping) or not set(view) <= set(Arrangement._fields):
        raise ValueError(
            f"the recipe has arrangement={messages.shown(view)} at {path!r}; it must be a dict "
            f"that has none but {', '.join(Arrangement._fields)}, or be left out"
        )


def _block(paths: Mapping[str, nn.Module], place: Place, module: nn.Module | None) -> nn.Module:
    """The block of one place, on the device of the module there."""
    matched = paths.get(place.path)
    if matched is None:
        near = get_close_matches(place.path, [path for path in paths if path], n=3, cutoff=0)
        raise ValueError(
            f"the recipe has a block at {place.path!r}, which is no module of this network; the "
            f"nearest paths are {', '.join(map(repr, near))}. Build the network as it was built "
            "for the insertion"
        )
    model = paths[""]
    device, dtype = _kind(model, matched)
    if ":" not in place.block:
        return build(place.block, **place.config, device=device, dtype=dtype)
    if module is None:
        raise ValueError(
            f"the recipe has a module of {place.block} at {place.path!r}, which is not of the "
            "catalogue; pass one: attnzoo.apply(model, recipe, module=...)"
        )
    return placing.copied(module, device, dtype)


def _matched(model: nn.Module, path: str) -> nn.Module:
    found = dict(named_modules(model)).get(path)
    if found is None:
        raise ValueError(
            f"the recipe has a block at {path!r}, and before it one that stands instead of a "
            "module around that; list the places in the order of the insertions"
        )
    return found


def _kind(model: nn.Module, matched: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and dtype of a module's parameters, else of the network's."""
    for part in (matched, model):
        for parameter in part.parameters():
            if parameter.is_floating_point():
                return parameter.device, parameter.dtype
    return None, None
