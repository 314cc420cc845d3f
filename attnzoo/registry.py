"""The flat catalogue: how a block is registered, found, described and built."""

import inspect
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, get_args

import torch
from torch import Tensor, nn

from . import capabilities, check, constructor

Layout = Literal["image", "sequence", "image_series", "pair", "features", "upsampler"]
Family = Literal[
    "channel",
    "spatial",
    "token",
    "state-space",
    "temporal",
    "fusion",
    "upsampler",
    "network",
    "other",
]
JSON: TypeAlias = bool | int | float | str | Sequence["JSON"] | Mapping[str, "JSON"] | None
# Authors' module paths to ours; "*" stands for one name, None marks layers that never act.
KeyMap: TypeAlias = Mapping[str, str | None]
Inputs: TypeAlias = dict[str, Tensor | list[Tensor]]


class Extent(NamedTuple):
    """How large an input is, apart from its channels: every layout reads the axes it has."""

    batch: int = 2
    steps: int = 24
    height: int = 14
    width: int = 14


DEFAULT_EXTENT = Extent()
_VAST = Extent(steps=2**512, height=2**64, width=2**64)


class Cost(NamedTuple):
    """Closed forms: parameters, and multiply-adds of one sample's forward pass (1 MAC each).

    `macs` is what the authors' published arithmetic needs, without products that are masked out,
    cut off or with padding; `macs_executed` is what the block runs, where that differs.
    """

    params: int
    macs: int
    macs_executed: int | None = None

    @property
    def executed(self) -> int:
        """Multiply-adds that run."""
        return self.macs if self.macs_executed is None else self.macs_executed


class Random(Protocol):
    """Draws a standard normal tensor of the given shape on the wanted device and dtype."""

    def __call__(self, *shape: int) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A well-known module of the same name whose weights do not give the authors' block."""

    whose: str
    keys: tuple[str, ...]  # of its state dict, all of them telling
    computes: str  # what it does otherwise
    lacks: tuple[str, ...] = ()  # keys of the authors' that tell it apart by their absence


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the catalogue knows of one block; everything else follows from it."""

    name: str
    cls: type[nn.Module]
    layouts: tuple[Layout, ...]
    family: Family
    example: Mapping[str, JSON]
    extent: Extent
    inputs: Callable[[Random, Extent, Mapping[str, Any]], Inputs]
    cost: Callable[..., Cost] | None
    upstream: tuple[KeyMap, ...]
    copies: tuple[Copy, ...]
    limits: Mapping[str, str]

    @property
    def signature(self) -> inspect.Signature:
        """The constructor's signature, without `self`."""
        return inspect.signature(self.cls)

    def bind(self, *args: Any, **config: Any) -> dict[str, Any]:
        """All constructor arguments by name, defaults filled in, types checked.

        Raises `TypeError` with the signature where a keyword is unknown or an argument missing.
        """
        return constructor.bind(self.name, self.cls, args, config)

    @property
    def usage(self) -> str:
        """The signature as a user writes it: `se(c, *, reduction=16, bias=False)`."""
        return constructor.usage(self.name, self.cls)

    def closed_form(self, extent: Extent | None = None, /, **config: Any) -> Cost | None:
        """Parameters and multiply-adds by formula, or None where the entry states no formula.

        The multiply-adds are those of one sample; the extent's batch has no part in them.
        """
        if self.cost is None:
            return None
        return self.cost(extent or self.extent, **self.bind(**config))

    def params(self, **bound: Any) -> int:
        """Parameters by formula, of all arguments; 0 where the entry states no formula."""
        if self.cost is None:
            return 0
        try:
            return self.cost(self.extent, **bound).params
        except ValueError:  # the example is too small for these arguments; no extent adds to these
            return self.cost(_VAST, **bound).params


@dataclass(frozen=True, kw_only=True)
class Description:
    """A block in words, taken from its entry and its file's docstring."""

    name: str
    title: str
    layouts: tuple[Layout, ...]
    family: Family
    signature: str
    defaults: dict[str, Any]
    example: dict[str, JSON]
    paper: str
    code: str
    math: str
    shapes: str
    differs: str
    cost: str
    params: int | None  # closed forms at the example's config and extent
    macs: int | None  # of the authors' arithmetic
    macs_executed: int | None  # of the block's own
    supported: dict[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """The default layout."""
        return self.layouts[0]


class UnknownBlockError(ValueError, KeyError):
    """No block has that name; the message lists the nearest ones."""

    __str__ = ValueError.__str__


_SECTIONS = ("Paper", "Code", "Math", "Shapes", "Differs", "Cost")
_blocks: dict[str, Entry] = {}
_lock = threading.Lock()


def register(
    name: str,
    *,
    layout: Layout | tuple[Layout, ...],
    family: Family = "other",
    example: Mapping[str, JSON] | None = None,
    extent: Extent = DEFAULT_EXTENT,
    inputs: Callable[[Random, Extent, Mapping[str, Any]], Inputs] | None = None,
    cost: Callable[..., Cost] | None = None,
    upstream: KeyMap | Sequence[KeyMap] = (),
    copies: Sequence[Copy] = (),
    limits: Mapping[str, str] | None = None,
) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Enter the decorated module class into the catalogue.

    Args:
        name: lower-case name, unique in the catalogue.
        layout: layout of the input; of several the first is the default, and the class takes
            `layout=` to pick another.
        family: a tag for listing.
        example: a config that builds, for tests, benchmark and documents; default: `c=64`.
        extent: size of the example input.
        inputs: `inputs(random, extent, config)` gives the forward call's arguments by name, for
            layouts whose input does not follow from `c` and the extent alone.
        cost: `cost(extent, **config)` gives the closed forms of parameters and MACs per sample.
        upstream: maps of the authors' module paths to ours, one for each naming in use.
        copies: modules in wide use that compute something else, told by their keys.
        limits: capabilities the block does not have, each with the reason (see
            `attnzoo.capabilities.CAPABILITIES`); the suite holds each to be true.

    Raises:
        ValueError: the name is taken or malformed, or the example does not bind.
        TypeError: the decorated object is not an `nn.Module` class.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        shown = check.shown(name)
        raise ValueError(f"name={shown} must be a str of lower-case letters, digits, underscores")
    layouts = layout if isinstance(layout, tuple) else (layout,)
    if not layouts:
        raise ValueError("layout=() must name one layout at least")
    for value in layouts:
        check.choice("layout", value, get_args(Layout))
    check.choice("family", family, get_args(Family))
    for key, mapping in (("example", example), ("limits", limits)):
        if not (mapping is None or isinstance(mapping, Mapping)):
            raise TypeError(f"{key}={check.shown(mapping)} must be a mapping")
    for key, function in (("inputs", inputs), ("cost", cost)):
        if not (function is None or callable(function)):
            raise TypeError(f"{key}={check.shown(function)} must be a function")
    if not (isinstance(extent, Extent) and all(isinstance(n, int) and n >= 1 for n in extent)):
        raise TypeError(f"extent={check.shown(extent)} must be an attnzoo.Extent of ints above 0")
    upstream = (upstream,) if isinstance(upstream, Mapping) else upstream
    for key, items, kind in (("upstream", upstream, Mapping), ("copies", copies, Copy)):
        if not (isinstance(items, (list, tuple)) and all(isinstance(i, kind) for i in items)):
            raise TypeError(f"{key}={check.shown(items)} must be a list of {kind.__name__}")
    for capability in limits or {}:
        check.choice("limits", capability, tuple(capabilities.CAPABILITIES))
    if inputs is None and not {"image", "sequence", "image_series"}.issuperset(layouts):
        raise ValueError(f"layout={layouts} needs inputs=, a function that makes example inputs")

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(
                f"register({name!r}) decorates an nn.Module class, not {check.shown(cls)}"
            )
        entry = Entry(
            name=name,
            cls=cls,
            layouts=layouts,
            family=family,
            example={"c": 64} if example is None else dict(example),
            extent=extent,
            inputs=inputs or _standard_inputs(layouts[0]),
            cost=cost,
            upstream=tuple(upstream),
            copies=tuple(copies),
            limits=dict(limits or {}),
        )
        try:
            entry.bind(**entry.example)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the example of {name!r} does not fit its class: {error}") from error
        taken = _catalogue()
        with _lock:
            if name in taken:
                raise ValueError(
                    f"a block named {name!r} is registered already ({taken[name].cls})"
                )
            constructor.hold(name, cls, entry.params)
            taken[name] = entry
        return cls

    return add


def find(name: str) -> Entry:
    """The entry of that name. Raises `UnknownBlockError` with the nearest names."""
    if not isinstance(name, str):
        raise TypeError(f"a block's name is a str, not {type(name).__name__}: {check.shown(name)}")
    try:
        return _catalogue()[name]
    except KeyError:
        known = _catalogue().copy()  # others may register meanwhile
        hint = check.nearest(name, known, titles={n: _title(e.cls) for n, e in known.items()})
        raise UnknownBlockError(
            f"no block is named {check.shown(name)}{hint}; attnzoo.names() lists all {len(known)}"
        ) from None


def names(
    *, layout: Layout | None = None, family: Family | None = None, text: str | None = None
) -> list[str]:
    """Sorted names of all blocks, or of those that match every given filter.

    `layout` matches any layout a block has; `text` is looked for, whatever its case, in the name
    and in the file's docstring (title, paper, code).
    """
    if layout is not None:
        check.choice("layout", layout, get_args(Layout))
    if family is not None:
        check.choice("family", family, get_args(Family))
    if not (text is None or isinstance(text, str)):
        raise TypeError(f"text={check.shown(text)} must be a str")
    return sorted(
        name
        for name, entry in _catalogue().copy().items()
        if (layout is None or layout in entry.layouts)
        and (family is None or family == entry.family)
        and (text is None or text.lower() in f"{name} {_doc(entry.cls)}".lower())
    )


def describe(name: str) -> Description:
    """Title, paper, code, layout, signature, cost formulas and support of one block."""
    entry = find(name)
    sections = _sections(_doc(entry.cls))
    cost = entry.closed_form(None, **entry.example)
    return Description(
        name=name,
        title=_title(entry.cls),
        layouts=entry.layouts,
        family=entry.family,
        signature=entry.usage,
        defaults={
            key: parameter.default
            for key, parameter in entry.signature.parameters.items()
            if parameter.default is not parameter.empty
        },
        example=dict(entry.example),
        **{section.lower(): sections.get(section, "") for section in _SECTIONS},
        params=cost.params if cost else None,
        macs=cost.macs if cost else None,
        macs_executed=cost.executed if cost else None,
        supported=capabilities.of(name, entry.limits),
    )


def build(
    name: str,
    /,
    *args: Any,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **config: Any,
) -> nn.Module:
    """Build a block: `build("cbam", c=64)`, or `build("cbam", 64)` as timm's `attn_layer` calls.

    Args:
        name: a name of `attnzoo.names()`.
        *args: the channels `c`, by position.
        device: where the parameters are made (`"meta"` too); default: torch's default device.
        dtype: floating dtype of the parameters; default: torch's default dtype.
        **config: the block's own keywords; `attnzoo.describe(name).signature` shows them.

    Raises:
        UnknownBlockError: no such name (a `ValueError` and a `KeyError`).
        TypeError: an unknown keyword or a value of the wrong type.
        ValueError: a value that breaks a rule of the block.
    """
    entry = find(name)
    bound = entry.bind(*args, **config)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in check.DTYPES):
        legal = ", ".join(map(str, check.DTYPES))
        raise ValueError(f"dtype={check.shown(dtype)} must be a floating torch.dtype: {legal}")
    if device is not None:
        check.device("device", device)
    with torch.device(device) if device is not None else nullcontext():
        block = entry.cls(**bound)
    return block if dtype is None else block.to(dtype=dtype)


def _catalogue() -> dict[str, Entry]:
    """All entries; the package's own blocks enter the first time anyone asks."""
    import_module(".blocks", __package__)
    return _blocks


def _standard_inputs(
    layout: Layout,
) -> Callable[[Random, Extent, Mapping[str, Any]], Inputs]:
    def inputs(random: Random, at: Extent, config: Mapping[str, Any]) -> Inputs:
        c = config["c"]
        shapes = {
            "image": (at.batch, c, at.height, at.width),
            "sequence": (at.batch, at.steps, c),
            "image_series": (at.batch, at.steps, c, at.height, at.width),
        }
        return {"x": random(*shapes[config.get("layout", layout)])}

    return inputs


def _doc(cls: type[nn.Module]) -> str:
    """The docstring of the class's file; the class's own where the file says nothing of it."""
    module = inspect.getmodule(cls)
    doc = inspect.getdoc(module) if module is not None else None
    if doc is not None and all(f"\n{section}:" in doc for section in ("Paper", "Math")):
        return doc
    return (cls.__doc__ and inspect.getdoc(cls)) or ""


def _title(cls: type[nn.Module]) -> str:
    return _doc(cls).split("\n", 1)[0].rstrip(".")


def _sections(doc: str) -> dict[str, str]:
    pieces = re.split(rf"^({'|'.join(_SECTIONS)}):", doc, flags=re.MULTILINE)
    return {
        label: inspect.cleandoc(body).strip()
        for label, body in zip(pieces[1::2], pieces[2::2], strict=True)
    }
