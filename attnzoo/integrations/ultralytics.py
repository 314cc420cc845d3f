"""Blocks in an ultralytics model yaml: a row may name any image block of the catalogue.

    import attnzoo.integrations.ultralytics
    from ultralytics import YOLO

    attnzoo.integrations.ultralytics.enable()
    model = YOLO("yolov8n-cbam.yaml")  # with rows such as  - [-1, 1, CBAM, [{reduction: 8}]]

By itself, ultralytics finds only its own modules (else it raises `KeyError: 'CBAM'`), and passes
channels to a fixed set of them. `enable` wraps its parser: a name that ultralytics does not know
and the catalogue does becomes a class that builds the block with the channels of the layer before
it. Checkpoints contain the block itself and load wherever attnzoo is installed; building a network
from its yaml, as training does, needs `enable` first.
"""

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .. import registry

_PREFIX = "attnzoo."  # names a block even if ultralytics has a layer of the same name
_LIBRARIES = ("nn.", "torchvision.ops.")  # prefixes by which ultralytics finds other modules


def enable() -> None:
    """Let ultralytics' model yamls name image blocks: `CBAM`, `cbam` or `attnzoo.cbam`.

    A row is `[from, repeats, NAME, []]` or `[from, repeats, NAME, [{keyword: value, ...}]]`; the
    block gets the channels of the layer before it. Names that ultralytics knows keep their meaning.
    Further calls have no effect.

    Raises:
        ModuleNotFoundError: ultralytics is not installed.
    """
    from ultralytics.nn import tasks

    if not hasattr(tasks.parse_model, "__wrapped__"):
        tasks.parse_model = _with_blocks(tasks.parse_model, tasks)


def disable() -> None:
    """Restore the original parser of ultralytics."""
    from ultralytics.nn import tasks

    tasks.parse_model = getattr(tasks.parse_model, "__wrapped__", tasks.parse_model)


def _with_blocks(parse: Callable[..., Any], tasks: ModuleType) -> Callable[..., Any]:
    @wraps(parse)
    def parse_model(d: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows = {part: list(map(row_of, d[part])) for part in ("backbone", "head")}
        return parse({**d, **rows}, *args, **kwargs)

    def row_of(row: list[Any]) -> list[Any]:
        source, repeats, name, arguments = row
        entry = _entry(name, vars(tasks))
        if entry is None:
            return row
        key = _PREFIX + entry.name
        vars(tasks)[key] = _layer(entry, source, arguments)  # where the parser looks up modules
        # The parser replaces string arguments by its variables of that name: `ch`, the channels of
        # all layers so far, and `f`, the index of the layer before this one.
        return [source, repeats, key, ["ch", "f", *arguments]]

    return parse_model


def _entry(name: str, known: dict[str, Any]) -> registry.Entry | None:
    """The image block that a row names, or None if the name is one of ultralytics."""
    if not name.startswith(_PREFIX) and (name in known or name.startswith(_LIBRARIES)):
        return None
    classes = {registry.find(block).cls.__name__: block for block in registry.names()}
    try:
        entry = registry.find(classes.get(name, name).removeprefix(_PREFIX))
    except registry.UnknownBlockError as error:
        raise registry.UnknownBlockError(
            f"ultralytics has no layer {name!r}, and {error}"
        ) from None
    if "image" not in entry.layouts:
        raise ValueError(
            f"{entry.name} takes {' or '.join(entry.layouts)}; a row of a model yaml takes an "
            f"image block: {', '.join(registry.names(layout='image'))}"
        )
    return entry


def _layer(entry: registry.Entry, source: Any, arguments: list[Any]) -> type[nn.Module]:
    """A class whose call, by the parser, returns the block itself."""
    if not isinstance(source, int):
        raise ValueError(f"{entry.name} follows one layer, not from={source!r}; pass one index")
    written = arguments[0] if arguments and isinstance(arguments[0], int) else None
    rest = arguments if written is None else arguments[1:]
    if isinstance(written, bool) or len(rest) > 1 or not all(isinstance(a, dict) for a in rest):
        raise ValueError(
            f"{entry.name}: arguments {arguments!r} must be [], the channels, [1024], or keywords "
            f"in a mapping, [{{keyword: value}}] or [1024, {{keyword: value}}]; the channels are "
            f"those of the layer before, after scaling. Signature: {entry.usage}"
        )

    def new(
        cls: type, channels: list[int], index: int, *arguments: int | dict[str, Any]
    ) -> nn.Module:
        given = {k: v for a in arguments if isinstance(a, dict) for k, v in a.items()}
        if entry.layouts[0] != "image":
            given["layout"] = "image"
        _check_channels(entry, channels[index], given)
        return registry.build(entry.name, channels[index], **given)

    # A subclass of Module, since ultralytics' restricted loading accepts nothing else.
    return type(entry.name, (nn.Module,), {"__new__": new, "__module__": "attnzoo"})


def _check_channels(entry: registry.Entry, c: int, config: dict[str, Any]) -> None:
    """Raise ValueError if the block changes the number of channels, which the parser relies on."""
    with torch.no_grad():
        block = registry.build(entry.name, c, **config, device="meta").eval()
        out = block(torch.empty(1, c, 64, 64, device="meta")).shape[1]
    if out != c:
        raise ValueError(
            f"{entry.name} with {config} turns {c} channels into {out}; in a model yaml a block "
            f"must preserve them"
        )
