"""Runs the network once on the example input and records the calls of the matched modules."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _torch
from ..validation.messages import shown
from ..validation.tensors import tensors


@dataclass(frozen=True)
class Channels:
    """The number of channels of a layer's output, and their axis by convention."""

    count: int
    axis: int | None  # None if the layer's class does not determine the axis


@dataclass
class Call:
    """What the run recorded of one call of a matched module."""

    arguments: tuple[Any, ...]  # tensors as copies on the meta device, positional ones first
    positional: int
    channels_in: Channels | None  # of the last layer that ran before the call
    macs: int  # multiply-adds; those of all before it, until it returns
    output: Any = None
    device: torch.device | None = None
    channels_out: Channels | None = None  # of the last layer before its return


class Run(NamedTuple):
    """What was recorded in one call of the network."""

    traces: dict[str, list[Call]]  # by path, the calls in their order
    macs: int  # multiply-adds of the whole batch
    batch: int
    uncounted: tuple[str, ...]  # operators without a cost formula
    image: tuple[int, int]  # height and width of the first image of the input, (1, 1) without one


def run(
    model: nn.Module, matched: Mapping[str, nn.Module], example: Any, train: bool = False
) -> Run:
    """Call the network once, in eval or train mode and without gradients, and restore its state.

    Raises `ValueError` if the call fails.
    """
    from ..cost.counter import WorkCounter, mha_in_parts  # not needed to import the package

    args, kwargs = arguments(example)
    if not any(True for _ in tensors(args, kwargs)):
        raise TypeError(
            f"example_input={shown(example)} has no tensor; pass what the model is called with, "
            "such as torch.randn(2, 3, 224, 224)"
        )
    traces: dict[str, list[Call]] = {path: [] for path in matched}
    counter = WorkCounter(strict=False)
    with (
        state_restored(model, train),
        _recorded(model, matched, traces, lambda: counter.work.macs),
    ):
        try:
            with torch.no_grad(), mha_in_parts(), counter:
                model(*args, **kwargs)
        except Exception as error:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors(args, kwargs))
            hint = "; BatchNorm takes two samples or more with train=True" if train else ""
            raise ValueError(
                f"the model does not take example_input of shape {shapes}: "
                f"{type(error).__name__}: {error}{hint}"
            ) from error
    batch = next((t.shape[0] for t in tensors(args, kwargs) if t.ndim), 1)
    image = next(((t.shape[2], t.shape[3]) for t in tensors(args, kwargs) if t.ndim == 4), (1, 1))
    uncounted = tuple(sorted(counter.uncounted))
    return Run(traces, counter.work.macs, max(batch, 1), uncounted, image)


def arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example input as positional and keyword arguments."""
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
def state_restored(model: nn.Module, train: bool = False) -> Iterator[None]:
    """Put the model in that mode; on exit, restore flags, buffers and random states."""
    modules = [*model.modules()]
    modes = [module.training for module in modules]
    buffers = [
        (module, name, buffer, buffer.clone(), _torch.version(buffer))
        for module in modules
        for name, buffer in module.named_buffers(recurse=False)
    ]
    encoders = [m for m in modules if isinstance(m, nn.TransformerEncoder)]
    nested = [encoder.use_nested_tensor for encoder in encoders]
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kinds = {device.type for device in devices} or {"cuda"}
    try:
        with torch.random.fork_rng(list(devices), device_type=kinds.pop()):
            model.train(train)
            for encoder in encoders:  # in eval mode they pack padded batches as nested tensors
                encoder.use_nested_tensor = False
            yield
    finally:
        for encoder, flag in zip(encoders, nested, strict=True):
            encoder.use_nested_tensor = flag
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, copy, version in buffers:
                setattr(module, name, buffer)
                # BatchNorm of torch 2.6 writes its statistics without counting that.
                if train or _torch.version(buffer) != version or version < 0:
                    buffer.copy_(copy)


@contextmanager
def _recorded(
    model: nn.Module,
    matched: Mapping[str, nn.Module],
    traces: Mapping[str, list[Call]],
    macs: Callable[[], int],
) -> Iterator[None]:
    """Register hooks that fill in the traces; they are removed on exit."""
    last: list[Channels | None] = [None]

    def after_layer(module: nn.Module, _: Any, output: Any) -> None:
        last[0] = _channels(module)

    def before(calls: list[Call], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = tuple(map(_to_meta, (*args, *kwargs.values())))
        calls.append(Call(values, len(args), last[0], macs()))

    def after(calls: list[Call], output: Any) -> None:
        call = calls[-1]
        call.output, call.channels_out = _to_meta(output), last[0]
        call.device = next((t.device for t in tensors(output)), None)
        call.macs = macs() - call.macs

    handles = [m.register_forward_hook(after_layer) for m in model.modules() if _channels(m)]
    for path, module in matched.items():
        trace = traces[path]
        handles += [
            module.register_forward_pre_hook(
                lambda _, args, kwargs, trace=trace: before(trace, args, kwargs), with_kwargs=True
            ),
            module.register_forward_hook(lambda _, __, out, trace=trace: after(trace, out)),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _to_meta(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else value


def _channels(module: nn.Module) -> Channels | None:
    """The output channels of a convolution, norm or linear layer; None for other modules."""
    if isinstance(module, _torch.Convolution):
        return Channels(module.out_channels, 1)
    if isinstance(module, (_torch.BatchNorm, _torch.InstanceNorm)):
        return Channels(module.num_features, 1)
    if isinstance(module, nn.GroupNorm):
        return Channels(module.num_channels, 1)
    if isinstance(module, nn.Linear):
        return Channels(module.out_features, -1)
    if isinstance(module, nn.LayerNorm):  # subclasses of it exist for either axis
        return Channels(module.normalized_shape[-1], -1 if type(module) is nn.LayerNorm else None)
    return None
