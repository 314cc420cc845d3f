"""What goes to one place: the layout, channels and length of the tensor there, and a trial."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..autograd import reference_forms
from ..registry import InputSize, Layout, stated_macs
from ..validation.tensors import first_sample
from .arrangement import Arrangement
from .host import How, enclosed
from .inference import InsertOptions, arrangement_of, entered
from .probe import Call, Channels, Run
from .recipe import Place
from .report import Placement
from .source import Source


class Plan(NamedTuple):
    """Everything needed to build the module that replaces the matched one."""

    place: Place
    placement: Placement
    device: torch.device | None
    dtype: torch.dtype


def plan(source: Source, model: nn.Module, path: str, run: Run, options: InsertOptions) -> Plan:
    """Plan the block for one place and try it; errors name the place."""
    module, calls = model.get_submodule(path), run.traces[path]
    label = f"{path!r} ({type(enclosed(module)).__name__})"
    _check_count(label, len(calls), options)
    found = [_tensor(label, call, options.how) for call in calls]
    x, channels = found[0]
    layout, arrangement = arrangement_of(label, source, x, channels, run.image, options)
    inner = entered(label, arrangement, x)
    config = source.config(inner, layout, options.config)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), x.dtype)
    device = calls[0].device
    block = _built(label, source, config, x, dtype, device)
    for call, (tensor, _) in zip(calls, found, strict=True):
        like = call.output if options.how == "instead" else tensor
        _check_call(label, source, block, tensor, arrangement, like, device)
    parameters = sum(p.numel() for p in block.parameters()) + options.zero_init
    macs = sum(_macs(block, layout, entered(label, arrangement, tensor)) for tensor, _ in found)
    if options.how == "instead":
        parameters -= sum(p.numel() for p in module.parameters())
        macs -= sum(call.macs for call in calls) // run.batch
    place = Place(
        path, source.name, config, options.how, options.residual, options.zero_init, arrangement
    )
    placement = Placement(
        path=path,
        how=options.how,
        layout=layout,
        config=config,
        shape=tuple(x.shape),
        parameters=parameters,
        macs=macs,
        recipe=place.as_json(),
    )
    return Plan(place, placement, device, dtype)


def _check_count(label: str, calls: int, options: InsertOptions) -> None:
    if calls == 0:
        hint = "" if options.train else "; where training calls it, pass train=True"
        mode = "train" if options.train else "eval"
        raise ValueError(
            f"{label} is called 0 times in a run of the model on example_input in {mode} mode{hint}"
        )
    if calls > 1 and not options.shared:
        raise ValueError(
            f"{label} is called {calls} times in a run of the model on example_input; pass "
            "shared=True for one block that acts at every call, or match a module called once"
        )


def _tensor(label: str, call: Call, how: How) -> tuple[Tensor, Channels | None]:
    """The tensor that the block takes in a call, and the channels of the last layer before it."""
    output, inputs = call.output, call.arguments
    if how != "before" and not isinstance(output, Tensor):
        raise ValueError(
            f"{label} returns a {type(output).__name__}, and a block takes one tensor; match a "
            "module inside it that returns a tensor"
        )
    if how != "after" and not (call.positional and isinstance(inputs[0], Tensor)):
        raise ValueError(f"{label} has no tensor as its first argument, which how={how!r} needs")
    if how == "instead" and sum(isinstance(value, Tensor) for value in inputs) > 1:
        raise ValueError(f"{label} is called with several tensors; a block instead takes one")
    x = output if how == "after" else inputs[0]
    if not x.is_floating_point():
        raise ValueError(f"{label} has a tensor of {x.dtype} there; a block takes floating ones")
    return x, call.channels_out if how == "after" else call.channels_in


def _built(
    label: str,
    source: Source,
    config: dict[str, Any],
    x: Tensor,
    dtype: torch.dtype,
    device: torch.device | None,
) -> nn.Module:
    """The block in eval mode: on the meta device, where a trial costs nothing, or a copy of a
    module, which may not run there."""
    try:
        return source.make(config, "meta" if source.entry else device, dtype).eval()
    except ValueError as error:
        raise _refused(label, source, x, error) from error


def _check_call(
    label: str,
    source: Source,
    block: nn.Module,
    x: Tensor,
    arrangement: Arrangement,
    like: Tensor,
    device: torch.device | None,
) -> None:
    """Raises ValueError unless the block takes `x` and returns a tensor of the shape of `like`."""
    kinds = ValueError if source.entry else Exception
    x = x if source.entry else torch.zeros(x.shape, dtype=x.dtype, device=device)
    try:
        with torch.no_grad(), reference_forms():
            y = block(arrangement.enter(x))
            y = arrangement.leave(y, x) if isinstance(y, Tensor) else y
    except kinds as error:
        raise _refused(label, source, x, error) from error
    if not isinstance(y, Tensor) or y.shape != like.shape:
        found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(
            f"{label}: {source.name!r} makes {found} of {tuple(x.shape)}, and the network goes on "
            f"with {tuple(like.shape)}"
        )


def _refused(label: str, source: Source, x: Tensor, error: Exception) -> ValueError:
    shape = tuple(x.shape)
    return ValueError(
        f"{label} has shape {shape} there, which {source.name!r} does not take: {error}"
    )


def _macs(block: nn.Module, layout: Layout, x: Tensor) -> int:
    """Multiply-adds of one sample: by the block's formula, as `attnzoo.measure` reports them, or
    counted if it has none."""
    from ..cost import counter

    rows, columns = x.shape[-2:] if layout != "sequence" else (1, 1)
    steps = {"image": 1, "sequence": x.shape[-2], "image_series": x.shape[1]}[layout]
    stated = stated_macs(block, InputSize(1, steps, rows, columns))
    if stated is not None:  # of one sequence; further leading axes add sequences
        return stated * (math.prod(x.shape[1:-2]) if layout == "sequence" else 1)
    with torch.no_grad(), reference_forms():
        weight = next(block.parameters(), x)
        x = torch.zeros_like(first_sample(x), device=weight.device)
        return counter.count(lambda: block(x), strict=False).macs
