"""The flat catalogue: how a block is registered, found, described and built."""

import functools
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

from . import capabilities
from .ops.weight_decay import exempted
from .validation import calls, check, messages, signature

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
# Authors' module paths to ours; "*" matches one name, None marks layers that are never called.
KeyMap: TypeAlias = Mapping[str, str | None]
Inputs: TypeAlias = dict[str, Tensor | list[Tensor]]


class InputSize(NamedTuple):
    """The size of an input without its channels; each layout uses only the axes it has."""

    batch: int = 2
    steps: int = 24
    height: int = 14
    width: int = 14


DEFAULT_SIZE = InputSize()


class Cost(NamedTuple):
    """The number of parameters, and the multiply-adds of one sample's forward pass.

    `macs` counts the authors' published arithmetic, without products that are masked out, cut off
    or multiplied by padding; it is None if the block has no formula. `macs_executed` counts what
    the block actually runs; it is None if that was not counted.
    """

    params: int
    macs: int | None
    macs_executed: int | None = None

    @property
    def executed(self) -> int | None:
        """`macs_executed`, or `macs` if it is None."""
        return self.macs if self.macs_executed is None else self.macs_executed


class Random(Protocol):
    """Draws a standard normal tensor of the given shape, on a fixed device and in a fixed dtype."""

    def __call__(self, *shape: int) -> Tensor: ...


MakeInputs: TypeAlias = Callable[[Random, InputSize, Mapping[str, Any]], Inputs]


@dataclass(frozen=True, kw_only=True)
class KnownVariant:
    """A widely used module of the same name that differs from the authors' block.

    Its weights cannot be loaded; the keys of its state dict identify it in error messages.
    """

    whose: str
    keys: tuple[str, ...]  # keys that its state dict has
    computes: str  # what it does differently
    lacks: tuple[str, ...] = ()  # keys of the authors' state dict that its own does not have


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The catalogue's record of one block, as given to `register`."""

    name: str
    cls: type[nn.Module]
    layouts: tuple[Layout, ...]
    family: Family
    example: Mapping[str, JSON]
    input_size: InputSize
    inputs: MakeInputs
    upstream: tuple[KeyMap, ...]
    known_variants: tuple[KnownVariant, ...]
    limits: Mapping[str, str]

    @property
    def title(self) -> str:
        """The first line of the docstring."""
        return _title(self.cls)

    @property
    def signature(self) -> inspect.Signature:
        """The constructor's signature, without `self`."""
        return inspect.signature(self.cls)

    def bind(self, *args: Any, **config: Any) -> dict[str, Any]:
        """All constructor arguments by name, with defaults, checked against the signature.

        Raises `TypeError`, with the signature, if a keyword is unknown or an argument is missing,
        and `TypeError` or `ValueError` if a value does not fit its annotation.
        """
        return signature.bind(self.name, self.cls, args, config)

    @property
    def usage(self) -> str:
        """The signature as a user writes it: `se(c, *, reduction=16, bias=False)`."""
        return signature.usage(self.name, self.cls)

    def closed_form(self, size: InputSize | None = None, /, **config: Any) -> Cost:
        """The number of parameters, and the multiply-adds of one sample by the class's formula.

        `size.batch` is ignored; `macs` is None if the class has no formula.
        """
        block = self._on_meta(config)
        return Cost(_parameters(block), stated_macs(block, size or self.input_size))

    def executed(self, size: InputSize | None = None, /, **config: Any) -> int:
        """Multiply-adds that one sample's forward pass runs, counted on the meta device.

        Raises `UncountedOperatorError` if the block calls an operator without a cost formula.
        """
        from .cost import counter  # not needed to build a block

        block, bound = self._on_meta(config).eval(), self.bind(**config)
        sample = (size or self.input_size)._replace(batch=1)
        with torch.device("meta"), torch.no_grad():
            inputs = self.inputs(_empty, sample, bound)
            positional, keywords = signature.arguments(block, inputs)
            return counter.count(lambda: block(*positional, **keywords)).macs

    def _on_meta(self, config: Mapping[str, Any]) -> nn.Module:
        with torch.device("meta"):
            return self.cls(**self.bind(**config))


def stated_macs(block: nn.Module, size: InputSize) -> int | None:
    """Multiply-adds of one sample by the block's method `macs`, or None if it has none."""
    formula = getattr(block, "macs", None)
    return int(formula(size)) if callable(formula) else None


def _parameters(block: nn.Module) -> int:
    return sum(p.numel() for p in block.parameters())


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@dataclass(frozen=True, kw_only=True)
class Description:
    """The description of a block, taken from its entry and its module's docstring."""

    name: str
    title: str
    layouts: tuple[Layout, ...]
    family: Family
    signature: str
    defaults: dict[str, Any]
    ranges: dict[str, str]  # legal values of the arguments that have a range
    example: dict[str, JSON]  # a config that builds
    when: str  # the use it is for
    paper: str
    code: str
    math: str
    shapes: str
    differs: str
    cost: str
    params: int  # at the example's config
    macs: int | None  # of one sample of the example's size, by the authors' arithmetic
    supported: dict[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """The default layout."""
        return self.layouts[0]

    @functools.cached_property
    def macs_executed(self) -> int | None:
        """Multiply-adds that run, or None if the block calls an operator without a formula."""
        from .cost.operators import UncountedOperatorError

        try:
            return find(self.name).executed(None, **self.example)
        except UncountedOperatorError:
            return None


class UnknownBlockError(ValueError, KeyError):
    """No block has the given name; the message lists the nearest names."""

    __str__ = ValueError.__str__


_SECTIONS = ("When", "Paper", "Code", "Math", "Shapes", "Differs", "Cost")
_blocks: dict[str, Entry] = {}
_entry_points: list[Any] | None = None  # those not loaded yet; None before the first look
_lock = threading.Lock()


def register(
    name: str,
    cls: type[nn.Module] | None = None,
    *,
    layout: Layout | tuple[Layout, ...],
    family: Family = "other",
    example: Mapping[str, JSON] | None = None,
    input_size: InputSize = DEFAULT_SIZE,
    inputs: MakeInputs | None = None,
    upstream: KeyMap | Sequence[KeyMap] = (),
    known_variants: Sequence[KnownVariant] = (),
    limits: Mapping[str, str] | None = None,
) -> Any:
    """Add a module class to the catalogue: `register("mine", Mine, ...)`, or as a decorator.

    The class may define `macs(size: InputSize) -> int`, which returns the multiply-adds of one
    sample's forward pass by the published arithmetic.

    Args:
        name: lower-case name, unique in the catalogue.
        cls: the class; without it, a decorator is returned.
        layout: layout of the input, or a tuple of several, of which the first is the default; the
            class then takes `layout=` to choose another.
        family: a tag by which `names` filters.
        example: the constructor arguments for tests, benchmark and documents; default: `c=64`.
        input_size: size of the example input.
        inputs: `inputs(random, size, config)` gives the forward call's arguments by name, for
            layouts whose input is not determined by `c` and the size.
        upstream: maps of the authors' module paths to ours, one for each naming in use.
        known_variants: widely used modules of the same name that compute something else.
        limits: capabilities that the block does not have, each with the reason (see
            `attnzoo.capabilities.CAPABILITIES`); the test suite checks that it does not.

    Raises:
        ValueError: the name is taken or malformed, or the example does not match the signature.
        TypeError: the class is not an `nn.Module` class, or an argument has the wrong type.
    """
    layouts = layout if isinstance(layout, tuple) else (layout,)
    upstream = (upstream,) if isinstance(upstream, Mapping) else upstream
    options = {
        "example": example,
        "limits": limits,
        "inputs": inputs,
        "input_size": input_size,
        "upstream": upstream,
        "known_variants": known_variants,
    }
    _check_registration(name, layouts, family, options)

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(
                f"register({name!r}) takes an nn.Module class, not {messages.shown(cls)}"
            )
        _add(
            Entry(
                name=name,
                cls=cls,
                layouts=layouts,
                family=family,
                example={"c": 64} if example is None else dict(example),
                input_size=input_size,
                inputs=inputs or _standard_inputs(layouts[0]),
                upstream=tuple(upstream),
                known_variants=tuple(known_variants),
                limits=dict(limits or {}),
            )
        )
        return cls

    return add if cls is None else add(cls)


def _check_registration(
    name: str, layouts: tuple[Layout, ...], family: Family, options: Mapping[str, Any]
) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        shown = messages.shown(name)
        raise ValueError(f"name={shown} must be a str of lower-case letters, digits, underscores")
    if not layouts:
        raise ValueError("layout=() must name at least one layout")
    for value in layouts:
        check.choice("layout", value, get_args(Layout))
    check.choice("family", family, get_args(Family))
    for key in ("example", "limits"):
        if not (options[key] is None or isinstance(options[key], Mapping)):
            raise TypeError(f"{key}={messages.shown(options[key])} must be a mapping")
    inputs, size = options["inputs"], options["input_size"]
    if not (inputs is None or callable(inputs)):
        raise TypeError(f"inputs={messages.shown(inputs)} must be a function")
    if not (isinstance(size, InputSize) and all(isinstance(n, int) and n >= 1 for n in size)):
        shown = messages.shown(size)
        raise TypeError(f"input_size={shown} must be an attnzoo.InputSize of ints of at least 1")
    for key, kind in (("upstream", Mapping), ("known_variants", KnownVariant)):
        items = options[key]
        if not (isinstance(items, (list, tuple)) and all(isinstance(i, kind) for i in items)):
            raise TypeError(f"{key}={messages.shown(items)} must be a list of {kind.__name__}")
    for capability in options["limits"] or {}:
        check.choice("limits", capability, tuple(capabilities.CAPABILITIES))
    if inputs is None and not {"image", "sequence", "image_series", "pair"}.issuperset(layouts):
        raise ValueError(f"layout={layouts} needs inputs=, a function that returns example inputs")


def _add(entry: Entry) -> None:
    name = entry.name
    try:
        entry.bind(**entry.example)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the example of {name!r} does not fit its class: {error}") from error
    own = entry.cls.__module__.startswith(f"{__package__}.")
    blocks = _blocks if own else _catalogue()
    with _lock:
        if name in blocks:
            raise ValueError(f"a block named {name!r} is registered already ({blocks[name].cls})")
        signature.enforce_signature(name, entry.cls)
        calls.enforce_calls(name, entry.cls)
        if not hasattr(entry.cls, "no_weight_decay"):
            entry.cls.no_weight_decay = exempted  # type: ignore[attr-defined]
        blocks[name] = entry


def find(name: str) -> Entry:
    """The entry of a name; an unknown name raises `UnknownBlockError` with the nearest names."""
    if not isinstance(name, str):
        raise TypeError(
            f"a block's name is a str, not {type(name).__name__}: {messages.shown(name)}"
        )
    try:
        return _catalogue()[name]
    except KeyError:
        known = _catalogue().copy()  # another thread may register a block meanwhile
        hint = messages.nearest_blocks(name, {n: _other_names(e.cls) for n, e in known.items()})
        raise UnknownBlockError(
            f"no block is named {messages.shown(name)}{hint}; "
            f"attnzoo.names() lists all {len(known)}"
        ) from None


def _other_names(cls: type[nn.Module]) -> tuple[str, str, str]:
    """The class's name, the block's title, and the titles of its paper and of the authors' code."""
    sections = _sections(_doc(cls))
    paper, code = sections.get("Paper", ""), sections.get("Code", "").split("@")[0]
    return cls.__name__, _title(cls), " ".join((*re.split(r"[.,;] ", paper)[:2], code))


def entry_of(module: nn.Module) -> Entry | None:
    """The entry of a block of the catalogue by the module, or None for other modules."""
    return {entry.cls: entry for entry in _catalogue().copy().values()}.get(type(module))


def nearest_classes(name: str) -> str:
    """`; did you mean ...?` with the classes that a word may mean."""
    known = {e.cls.__name__: _other_names(e.cls) for e in _catalogue().copy().values()}
    return messages.nearest_blocks(name, known)


def class_named(name: str) -> type[nn.Module] | None:
    """The class of a block by the class's own name, such as `CBAM`; None if there is none."""
    return next((e.cls for e in _catalogue().copy().values() if e.cls.__name__ == name), None)


def names(
    *, layout: Layout | None = None, family: Family | None = None, text: str | None = None
) -> list[str]:
    """Sorted names of all blocks, or of those that match every given filter.

    `layout` matches any of a block's layouts; `text` is searched for, ignoring case, in the name
    and in the module's docstring (title, paper, code).
    """
    if layout is not None:
        check.choice("layout", layout, get_args(Layout))
    if family is not None:
        check.choice("family", family, get_args(Family))
    if not (text is None or isinstance(text, str)):
        raise TypeError(f"text={messages.shown(text)} must be a str")
    return sorted(
        name
        for name, entry in _catalogue().copy().items()
        if (layout is None or layout in entry.layouts)
        and (family is None or family == entry.family)
        and (text is None or text.lower() in f"{name} {_doc(entry.cls)}".lower())
    )


def describe(name: str) -> Description:
    """The documentation of one block: paper, code, equation, signature, costs, capabilities."""
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
        ranges=signature.ranges(entry.cls),
        example=dict(entry.example),
        **{section.lower(): sections.get(section, "") for section in _SECTIONS},
        params=cost.params,
        macs=cost.macs,
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
        device: where to create the parameters, `"meta"` included; default: torch's default device.
        dtype: floating dtype of the parameters; default: torch's default dtype.
        **config: the block's own keywords; `attnzoo.describe(name).signature` shows them.

    Raises:
        UnknownBlockError: no block has that name (a `ValueError` and a `KeyError`).
        TypeError: an unknown keyword or a value of the wrong type.
        ValueError: a value that the block does not allow.
    """
    entry = find(name)
    bound = entry.bind(*args, **config)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in check.DTYPES):
        legal = ", ".join(map(str, check.DTYPES))
        raise ValueError(f"dtype={messages.shown(dtype)} must be a floating torch.dtype: {legal}")
    if device is not None:
        check.device("device", device)
    with torch.device(device) if device is not None else nullcontext():
        block = entry.cls(**bound)
    return block if dtype is None else block.to(dtype=dtype)


def _catalogue() -> dict[str, Entry]:
    """All entries; the first call imports the modules that register them.

    These are the package's own blocks and the modules that other packages name in the entry-point
    group `attnzoo.blocks`.
    """
    for package in (".blocks", ".networks"):
        import_module(package, __package__)
    _load_entry_points()
    return _blocks


def _load_entry_points() -> None:
    """Import what installed packages name, once. Raises ImportError, worded, where that fails."""
    from importlib.metadata import entry_points

    global _entry_points
    if _entry_points is None:
        _entry_points = list(entry_points(group="attnzoo.blocks"))
    while _entry_points:
        point = _entry_points.pop()  # first, since what it imports asks for the catalogue
        try:
            point.load()
        except Exception as error:
            _entry_points.append(point)
            raise ImportError(
                f"the entry point {point.name!r} of the group attnzoo.blocks ({point.value}) "
                f"cannot be loaded: {type(error).__name__}: {error}; mend or uninstall its package"
            ) from error


def _standard_inputs(
    layout: Layout,
) -> MakeInputs:
    def inputs(random: Random, size: InputSize, config: Mapping[str, Any]) -> Inputs:
        c = config["c"]
        shapes = {
            "image": (size.batch, c, size.height, size.width),
            "sequence": (size.batch, size.steps, c),
            "image_series": (size.batch, size.steps, c, size.height, size.width),
        }
        if layout == "pair":
            return {"x": random(*shapes["image"]), "y": random(*shapes["image"])}
        return {"x": random(*shapes[config.get("layout", layout)])}

    return inputs


def _doc(cls: type[nn.Module]) -> str:
    """The module's docstring if it has the labeled sections, else the class's own."""
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
