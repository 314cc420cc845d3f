"""Which modules a pattern means, and what one run of the network says of them."""

import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..cost.counter import mha_in_parts
from ..testing.inputs import tensors
from .host import Inserted, host, innermost

Where: TypeAlias = str | re.Pattern[str] | Callable[[str, nn.Module], bool]


class Channels:
    """How many channels a layer gives, and which axis of its output they are by convention."""

    def __init__(self, count: int, axis: int | None) -> None:
        self.count, self.axis = count, axis


@dataclass
class ModuleTrace:
    """What the run showed of one matched module."""

    calls: int = 0
    arguments: tuple[Any, ...] = ()  # tensors as their likes on the meta device, positional first
    positional: int = 0
    output: Any = None
    device: torch.device | None = None
    channels_in: Channels | None = None  # of the last layer that ran before the call
    channels_out: Channels | None = None  # and of the last one before its return
    macs: int = 0
    _before: int = field(default=0, repr=False)


def walk(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every path of the network with its module, shared ones at each path, inserted blocks not."""
    yield path, model
    inner = innermost(model)
    if (
        isinstance(model, Inserted)
        and host(model) is inner
        and model._attnzoo_site.how == "instead"
    ):
        return
    for name, child in inner._modules.items():  # named_children leaves out repetitions
        if child is not None:
            yield from walk(child, f"{path}.{name}".lstrip("."))


def matches(model: nn.Module, where: Where) -> dict[str, nn.Module]:
    """The matched modules by path; of a glob's nested matches the outermost.

    Raises:
        ValueError: nothing matches, a matched module is shared, or matches of a regular
            expression or callable are nested.
        TypeError: `where` is none of the three.
    """
    paths: dict[str, nn.Module] = dict(walk(model))
    taken = _taken(where, paths)
    if not taken:
        raise ValueError(_nothing(where, paths))
    nested = {p for p in taken for other in taken if p.startswith(f"{other}.")}
    if nested and not isinstance(where, str):
        inside = min(nested)
        outside = next(p for p in taken if inside.startswith(f"{p}."))
        raise ValueError(
            f"where={_shown(where)} matches {inside!r} and {outside!r}, which it is inside of; "
            "match one of the two"
        )
    found = {p: paths[p] for p in taken if p not in nested}
    _refuse_shared(model, found)
    return found


def _taken(where: Where, paths: Mapping[str, nn.Module]) -> list[str]:
    if isinstance(where, str):
        return [p for p in paths if p and fnmatch.fnmatchcase(p, where)]
    if isinstance(where, re.Pattern) and isinstance(where.pattern, str):
        return [p for p in paths if p and where.fullmatch(p)]
    if callable(where) and not isinstance(where, type):
        return [p for p, module in paths.items() if p and where(p, innermost(module))]
    raise TypeError(
        f"where={where!r} must be a glob string, an re.Pattern of str or a callable (path, module) "
        f"-> bool, such as lambda path, module: isinstance(module, nn.Conv2d), not "
        f"{type(where).__name__}"
    )


def _nothing(where: Where, paths: Mapping[str, nn.Module]) -> str:
    text = f"where={_shown(where)} matches none of the model's {len(paths) - 1} modules"
    if where == "":
        return f"{text}; the model itself cannot be replaced in place"
    if callable(where):
        return f"{text}; list(model.named_modules()) shows what there is"
    word = where if isinstance(where, str) else where.pattern
    near = get_close_matches(word, [p for p in paths if p], n=3, cutoff=0)
    return f"{text}; the nearest paths are {', '.join(map(repr, near))}"


def _shown(where: Where) -> str:
    return repr(where.pattern if isinstance(where, re.Pattern) else where)


def _refuse_shared(model: nn.Module, found: Mapping[str, nn.Module]) -> None:
    places: dict[int, list[str]] = {}
    for path, module in walk(model):
        places.setdefault(id(module), []).append(path)
    for path, module in found.items():
        if len(places[id(module)]) > 1:
            raise ValueError(
                f"{path!r} is one module at {len(places[id(module)])} paths, "
                f"{', '.join(map(repr, places[id(module)]))}; a block there would be shared too: "
                "give each path a module of its own, such as copy.deepcopy's, first"
            )


class Run(NamedTuple):
    """What one call of the network showed."""

    seen: dict[str, ModuleTrace]
    macs: int  # multiply-adds of the whole batch
    batch: int


def run(model: nn.Module, found: Mapping[str, nn.Module], example: Any) -> Run:
    """One call of the network in eval mode, without gradients or traces in its state.

    Raises `ValueError` where the network does not take the example input.
    """
    args, kwargs = arguments(example)
    seen = {path: ModuleTrace() for path in found}
    counter = multiply_adds()
    with _kept(model), _watching(model, found, seen, counter.get_total_flops):
        try:
            with torch.no_grad(), mha_in_parts(), counter:
                model(*args, **kwargs)
        except Exception as error:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors(list(args), kwargs))
            raise ValueError(
                f"the model does not take example_input of shape {shapes}: "
                f"{type(error).__name__}: {error}"
            ) from error
    batch = next((t.shape[0] for t in tensors(list(args), kwargs) if t.ndim), 1)
    return Run(seen, counter.get_total_flops() // 2, max(batch, 1))


def multiply_adds() -> FlopCounterMode:
    """Torch's counter of twice the multiply-adds, which counts recurrent layers too."""
    recurrent = {torch.ops.aten.mkldnn_rnn_layer: _recurrent, torch.ops.aten._cudnn_rnn: _recurrent}
    counter = FlopCounterMode(display=False, custom_mapping=recurrent)
    # Its own tracker, which tells modules apart, fails on views of parameters without gradients.
    counter.mod_tracker = _Untold()  # type: ignore[assignment]
    return counter


class _Untold(nullcontext[None]):
    """All that runs is the whole."""

    parents = frozenset({"Global"})


def _recurrent(x: Any, *weights: Any, **_: Any) -> int:
    """Every matrix once a step, by shapes: two a layer on the CPU, a list of all from cuDNN."""
    shapes = weights[0] if isinstance(weights[0], list) else weights[:2]
    steps: int = math.prod(x[:-1])
    return 2 * steps * sum(math.prod(s) for s in shapes if len(s) == 2)


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor, a tuple of positional or a mapping of keyword arguments, as a call has them."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple):
        return example, {}
    if isinstance(example, Mapping):
        return (), dict(example)
    raise TypeError(
        "example_input must be a Tensor, a tuple of positional arguments or a dict of keyword "
        f"arguments of the model, not {type(example).__name__}"
    )


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Training flags, buffers and random states are the same after as before."""
    modules = [*model.modules()]
    flags = [module.training for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone(), buffer._version)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    encoders = [m for m in modules if isinstance(m, nn.TransformerEncoder)]
    nested = [encoder.use_nested_tensor for encoder in encoders]
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kinds = {device.type for device in devices} or {"cuda"}
    try:
        with torch.random.fork_rng(list(devices), device_type=kinds.pop()):
            model.eval()
            for encoder in encoders:  # which packs padded batches as nested tensors in eval mode
                encoder.use_nested_tensor = False
            yield
    finally:
        for encoder, flag in zip(encoders, nested, strict=True):
            encoder.use_nested_tensor = flag
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag
        with torch.no_grad():
            for module, name, buffer, copy, version in buffers:
                module._buffers[name] = buffer
                if buffer._version != version:
                    buffer.copy_(copy)


@contextmanager
def _watching(
    model: nn.Module,
    found: Mapping[str, nn.Module],
    seen: Mapping[str, ModuleTrace],
    flops: Callable[[], int],
) -> Iterator[None]:
    """Hooks that fill in `seen`, there for the time of the run only."""
    last: list[Channels | None] = [None]

    def layer(module: nn.Module, _: Any, output: Any) -> None:
        last[0] = _channels(module)

    def enter(record: ModuleTrace, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        record.calls += 1
        record.arguments = tuple(map(_ghost, (*args, *kwargs.values())))
        record.positional, record.channels_in, record._before = len(args), last[0], flops()

    def leave(record: ModuleTrace, output: Any) -> None:
        record.output, record.channels_out = _ghost(output), last[0]
        record.device = next((t.device for t in tensors(output)), record.device)
        record.macs = (flops() - record._before) // 2

    handles = [m.register_forward_hook(layer) for m in model.modules() if _channels(m)]
    for path, module in found.items():
        record = seen[path]
        handles += [
            module.register_forward_pre_hook(
                lambda _, args, kwargs, record=record: enter(record, args, kwargs), with_kwargs=True
            ),
            module.register_forward_hook(lambda _, __, out, record=record: leave(record, out)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ghost(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else value


def _channels(module: nn.Module) -> Channels | None:
    """Of a layer whose kind says it; subclasses of LayerNorm exist for either axis."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return Channels(module.out_channels, 1)
    if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)):
        return Channels(module.num_features, 1)
    if isinstance(module, nn.GroupNorm):
        return Channels(module.num_channels, 1)
    if isinstance(module, nn.Linear):
        return Channels(module.out_features, -1)
    if isinstance(module, nn.LayerNorm):
        return Channels(module.normalized_shape[-1], -1 if type(module) is nn.LayerNorm else None)
    return None
