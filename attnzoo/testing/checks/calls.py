"""Checks of calls: what inputs a module takes, and what comes back."""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...registry import Inputs, InputSize
from ..closeness import assert_close
from ..inputs import call, leaves, map_tensors, tensors
from ..locate import first_not_finite
from ..modes import DevicesMeet, FormatLost, ReadsOfValues, first_wide_result
from ..outcome import FaultError, check, is_refusal, not_applicable, refused, require
from ..resize import batch_size, leading
from ..step import finite, named_inputs, step
from ..subject import ODD, SINGLE, SMALL, Subject

BOTH = (False, True)  # eval and train mode


@check("runs", remedy="start from inputs that the module takes")
def runs(subject: Subject) -> str | None:
    """the example runs in eval mode and its outputs are finite tensors"""
    module, inputs = subject.made()
    with torch.no_grad():
        outputs = list(tensors(call(module, inputs)))
    if not outputs:
        raise FaultError("forward returns no tensor", "return a tensor, or a nest of tensors")
    if not finite([o for o in outputs if o.is_floating_point()]):
        path = first_not_finite(module, inputs)
        at = f", first those of {path}" if path else ""
        raise FaultError(
            f"outputs are not finite{at}", "look for 0 / 0, log(0) and exp of large values"
        )
    return None


@check("dtype", remedy="make constants in the input's dtype: x.new_tensor(...)")
def dtype(subject: Subject) -> str | None:
    """float32 stays float32 and float64 stays float64, and both are finite"""
    for kind in (torch.float32, torch.float64):
        module, inputs = subject.made(dtype=kind)
        with torch.no_grad(), first_wide_result(kind) as found:
            outputs = list(tensors(call(module, inputs)))
        for output in outputs:
            if output.is_floating_point() and output.dtype != kind:
                where = f" (from {found[0]})" if found else ""
                raise FaultError(
                    f"{_plain(kind)} inputs give a {_plain(output.dtype)} output{where}: "
                    f"a {_plain(output.dtype)} constant"
                )
        require(finite([o for o in outputs if o.is_floating_point()]), f"not finite in {kind}")
    return None


def _plain(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


@check("gradients", remedy="remove what does not act, or keep it in the graph")
def gradients(subject: Subject) -> str | None:
    """a training step gives a finite gradient to every parameter and every floating input"""
    module, inputs = subject.made(train=True)
    found, points, outputs = _step_in_parts(module, inputs)
    if not any(o.requires_grad for o in outputs):
        if next(module.parameters(), None) is None and all(not p.requires_grad for p in points):
            return not_applicable("nothing wants a gradient")
        raise FaultError(
            "no output requires a gradient: the graph is cut",
            "look for .detach(), .data, .item(), torch.no_grad() and NumPy on the way",
        )
    for key, (leaf, grad) in found.items():
        if grad is None:
            _tell_missing(subject, module, inputs, key, leaf)
        elif not grad.isfinite().all():
            raise FaultError(
                f"the gradient of {key} is not finite",
                "look for sqrt or norm at 0, and for 0 * inf inside torch.where",
            )
    return None


def _step_in_parts(
    module: nn.Module, inputs: Inputs
) -> tuple[dict[str, tuple[Tensor, Tensor | None]], list[Tensor], list[Tensor]]:
    """Each leaf with its gradient by name, the inputs' leaves, the outputs."""
    points = leaves(inputs)
    torch.manual_seed(3)
    outputs = list(tensors(call(module, points)))
    wanted = {f"input {k}": t for k, t in named_inputs(points).items() if t.requires_grad}
    wanted |= {f"parameter {k}": p for k, p in module.named_parameters() if p.requires_grad}
    graph = [o for o in outputs if o.requires_grad]
    grads: Sequence[Tensor | None] = [None] * len(wanted)
    if graph and wanted:
        torch.manual_seed(4)
        weights = [torch.randn_like(o) for o in graph]
        grads = torch.autograd.grad(graph, list(wanted.values()), weights, allow_unused=True)
    pairs = zip(wanted.items(), grads, strict=True)
    return {k: (leaf, g) for (k, leaf), g in pairs}, list(tensors(points)), outputs


def _tell_missing(
    subject: Subject, module: nn.Module, inputs: Inputs, key: str, leaf: Tensor
) -> None:
    """A leaf without a gradient: does it act all the same?"""
    acts = _acts(module, inputs, key)
    if acts:
        raise FaultError(
            f"{key} changes the output and gets no gradient: a detached branch",
            "look for .detach(), .data, .item(), torch.no_grad() and NumPy on its way",
        )
    if key.startswith("parameter"):
        raise FaultError(
            f"{key} is unused: the output does not depend on it",
            "remove it, or call the layer; DistributedDataParallel refuses such parameters",
        )


def _acts(module: nn.Module, inputs: Inputs, key: str) -> bool:
    """Whether the output moves with an input or a parameter."""
    kind, name = key.split(" ", 1)
    mine = leaves(inputs)
    state = copy.deepcopy(module.state_dict())

    def outputs() -> list[Tensor]:
        torch.manual_seed(3)
        return [t.clone() for t in tensors(call(module, mine))]

    with torch.no_grad():
        before = outputs()
        module.load_state_dict(state)
        leaf = module.get_parameter(name) if kind == "parameter" else named_inputs(mine)[name]
        leaf.add_(torch.randn_like(leaf))
        after = outputs()
        module.load_state_dict(state)
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def whole_step(subject: Subject, module: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """A finite step; of a registered block, with the gradient of everything."""
    found = step(module, inputs)
    if not finite(found):
        raise FaultError("outputs or gradients are not finite", "look for a division by a size - 1")
    if subject.registered:
        require(
            len(found["parameters"]) == len(list(module.parameters())),
            "a parameter gets no gradient",
        )
        require(
            len(found["inputs"]) == sum(t.is_floating_point() for t in tensors(inputs)),
            "an input gets no gradient",
        )
    return found


@check("batch", capability="batch", remedy="let no axis of the batch be squeezed or counted on")
def batch(subject: Subject, modes: Sequence[bool] = BOTH) -> str | None:
    """a batch of one runs and trains, in both modes"""
    for train in modes:
        module, inputs = one_sample(subject, train)
        try:
            found = whole_step(subject, module, inputs)
        except (ValueError, TypeError) as error:
            if not (train and is_refusal(error)):
                raise
            return refused(error)
        if not train and not subject.registered:
            _keeps_its_shape(subject, found["outputs"])
    return None


def one_sample(subject: Subject, train: bool) -> tuple[nn.Module, Inputs]:
    """A module and one sample for it."""
    if subject.registered:
        return subject.made(SINGLE, train=train)
    module, inputs = subject.made(train=train)
    return module, subject.samples(inputs, slice(1))


def _keeps_its_shape(subject: Subject, alone: list[Tensor]) -> None:
    """The outputs for one sample have the axes of those for several."""
    module, inputs = subject.made()
    several = list(tensors(call(module, inputs)))
    for one, many in zip(alone, several, strict=True):
        if one.ndim != many.ndim:
            raise FaultError(
                f"one sample gives {tuple(one.shape)}, {batch_size(inputs)} give "
                f"{tuple(many.shape)}: the axis of the batch is lost",
                "squeeze named axes: squeeze(-1) in place of squeeze()",
            )


@check("empty_batch", capability="batch", remedy="reshape to sizes, not to -1, beside the batch")
def empty_batch(subject: Subject, modes: Sequence[bool] = BOTH) -> str | None:
    """an empty batch gives an empty output, and gradients of zero"""
    for train in modes:
        module, inputs = one_sample(subject, train)
        nothing = subject.samples(inputs, slice(0))
        try:
            whole_step(subject, module, nothing)
        except Exception as error:  # an empty batch has no statistics
            if not subject.registered:
                return not_applicable(f"it takes no empty batch: {_first_line(error)}")
            if not (isinstance(error, ValueError) and train and "BatchNorm" in str(error)):
                raise
        else:
            pairs = zip(tensors(call(module, inputs)), tensors(call(module, nothing)), strict=True)
            for one, none in pairs:
                if subject.registered or (one.ndim and len(one) == 1 and not len(none)):
                    require(none.shape == (0, *one.shape[1:]), f"{none.shape} beside {one.shape}")
    return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


SIZES = {"small": SMALL, "odd": ODD}
TINY = {
    "1x1": InputSize(batch=2, steps=1, height=1, width=1),
    "1xN": InputSize(batch=2, steps=2, height=1, width=9),
    "Nx1": InputSize(batch=2, steps=3, height=9, width=1),
}


@check("sizes", capability="sizes", remedy="compute sizes from x.shape, or refuse them in words")
def sizes(subject: Subject) -> str | None:
    """smaller, larger and odd sizes run and train"""
    at = subject.entry.input_size if subject.entry is not None else _usual_size(subject)
    larger = InputSize(2, 2 * at.steps + 1, 2 * at.height + 1, at.width + 3)
    if _shapes(subject.inputs(larger)) == _shapes(subject.inputs(at)):
        return _of_one_size(subject, at)
    wanted = SIZES if subject.registered else {"odd": _odd(at), "doubled": _double(at)}
    return _all_sizes(subject, {**wanted, "larger": larger})


def _odd(at: InputSize) -> InputSize:
    return InputSize(3, *((n + 1) | 1 for n in at[1:]))


def _double(at: InputSize) -> InputSize:
    return InputSize(2, *(2 * n for n in at[1:]))


def _usual_size(subject: Subject) -> InputSize:
    first = leading(subject.inputs())
    if first is None:
        return InputSize()
    longest = max(first.shape[1:-1] or first.shape[-1:], default=1)
    height, width = (first.shape[-2], first.shape[-1]) if first.ndim > 3 else (longest, longest)
    return InputSize(first.shape[0], longest if first.ndim < 5 else first.shape[1], height, width)


def _all_sizes(subject: Subject, wanted: dict[str, InputSize]) -> str | None:
    said = None
    for (name, size), train in itertools.product(wanted.items(), BOTH):
        module, inputs = subject.made(size, train=train)
        try:
            whole_step(subject, module, inputs)
        except Exception as error:
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors(inputs))
            if is_refusal(error) or (not subject.registered and _says_why(error)):
                said = said or f"refused: {error}"
                continue
            if isinstance(error, FaultError):
                raise FaultError(f"at inputs {shapes}: {error.cause}", error.remedy) from None
            line = _first_line(error)
            raise FaultError(
                f"{name} inputs {shapes} fail: {line}; a size is baked in, or divided without "
                "its remainder",
                "compute sizes from x.shape, or raise ValueError that names the size and the rule",
            ) from error
    return said


def _says_why(error: Exception) -> bool:
    """An assertion of the module's own with a message, as networks state their strides."""
    return isinstance(error, AssertionError) and len(str(error)) > 20


def _of_one_size(subject: Subject, at: InputSize) -> str | None:
    """Example inputs of one size alone: another is refused, or not the module's to vary."""
    module, inputs = subject.made(at)
    if not subject.registered:
        return not_applicable("no axis of the inputs is one of time or space")
    try:
        call(module, map_tensors(_grown, inputs))
    except ValueError as error:
        return refused(error)
    raise FaultError("inputs of another size are not refused")


def _shapes(inputs: Inputs) -> list[torch.Size]:
    """Of one sample of each input."""
    return [t.shape[1:] for t in tensors(inputs)]


def _grown(tensor: Tensor) -> Tensor:
    """A step more of a sequence (B, T, C), a row and a column more of images."""
    return nn.functional.pad(tensor, (0, 0, 0, 1) if tensor.ndim == 3 else (0, 1, 0, 1))


@check("tiny", capability="sizes", remedy="refuse sizes that are too small in words")
def tiny(subject: Subject) -> str | None:
    """1x1, 1xN and Nx1 run and train"""
    if _shapes(subject.inputs(SMALL)) == _shapes(subject.inputs(ODD)):
        return not_applicable("no axis of the inputs is one of time or space")
    try:
        return _all_sizes(subject, TINY)
    except FaultError as error:
        if subject.registered or "not finite" in error.cause:
            raise
        return not_applicable(f"it takes no map as small as that: {error.cause}")


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    "sliced": lambda t: torch.stack((t, t), -1)[..., 1],
    "expanded": lambda t: t[:1].expand(t.shape),
    "expanded inside": lambda t: t.narrow(-1, 0, 1).expand(t.shape),
}


@check("strides", capability="strides", remedy="reshape() in place of view()")
def strides(subject: Subject, kinds: Sequence[str] = tuple(STRIDES)) -> str | None:
    """transposed, sliced and expanded inputs give what contiguous ones do, gradients too"""
    for kind in kinds:
        module, inputs = subject.made()
        change = STRIDES[kind]

        def contiguous(tensor: Tensor, change: Callable[[Tensor], Tensor] = change) -> Tensor:
            return change(tensor).contiguous()

        plain = step(module, inputs, _changing(module, contiguous))
        assert_close(step(module, inputs, _changing(module, change)), plain)
    return None


def _changing(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[Inputs], Any]:
    return lambda points: call(module, map_tensors(change, points))


IMAGES = ("image", "features", "pair", "upsampler")  # layouts of (B, C, H, W), one or several


@check(
    "channels_last",
    capability="channels_last",
    remedy="reshape to (B, C, H, W) last of all, and call "
    "y.contiguous(memory_format=torch.channels_last) where x is channels_last",
)
def channels_last(subject: Subject) -> str | None:
    """the output of a channels_last image is channels_last, with the same numbers"""
    for train, kind in itertools.product(BOTH, (torch.float32, torch.float64)):
        module, inputs = subject.made(dtype=kind, train=train)
        layout = subject.entry.layouts[0] if subject.entry is not None else "image"
        if layout not in IMAGES or all(t.ndim != 4 for t in tensors(inputs)):
            return not_applicable("it takes no image (B, C, H, W)")
        state = copy.deepcopy(module.state_dict())
        torch.manual_seed(3)
        wanted = step(module, inputs)
        module.load_state_dict(state)
        torch.manual_seed(3)
        found = step(module, map_tensors(_channels_last, inputs))
        # A bias in front of train-mode BatchNorm has no gradient but rounding: float64 has less.
        noisy = train and not subject.registered and _draws(module, inputs)
        if not noisy and (not train or kind == torch.float64):
            assert_close(found, wanted)
        with torch.no_grad(), FormatLost() as lost:
            quick = tensors(call(module, map_tensors(_channels_last, inputs)))
        if lost.operators and not subject.registered:
            return not_applicable(f"torch's own {lost.operators[0]} does not keep channels_last")
        of_it = slice(None) if subject.registered else slice(1)  # others may be no images
        for output in (*found["outputs"][of_it], *list(quick)[of_it]):
            _is_channels_last(output, train)
    return None


def _draws(module: nn.Module, inputs: Inputs) -> bool:
    """Whether a call draws random numbers, in an order that the memory format decides."""
    before = torch.get_rng_state()
    with torch.no_grad():
        call(module, inputs)
    return not torch.equal(before, torch.get_rng_state())


def _is_channels_last(output: Tensor, train: bool) -> None:
    kept = output.is_contiguous(memory_format=torch.channels_last)
    if output.ndim == 4 and not kept:
        raise FaultError(
            f"channels_last is ignored: the output of shape {tuple(output.shape)} has strides "
            f"{output.stride()} in {'train' if train else 'eval'} mode"
        )


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.ndim != 4:
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)


@check("frozen", capability="frozen", remedy="do not count on requires_grad of inputs or weights")
def frozen(subject: Subject) -> str | None:
    """inputs or parameters that want no gradient, no_grad and inference_mode change no number"""
    module, inputs = subject.made()
    wanted = step(module, inputs)
    if next(module.parameters(), None) is not None or subject.registered:
        found = step(module, inputs, _changing(module, Tensor.detach))
        require(not found["inputs"], "an input that wants no gradient gets one")
        assert_close(found["parameters"], wanted["parameters"])
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert_close(list(tensors(call(module, inputs))), wanted["outputs"])
    found = step(module.requires_grad_(False), inputs)
    require(not found["parameters"], "a parameter that wants no gradient gets one")
    assert_close(found["inputs"], wanted["inputs"])
    return None


@check("device", remedy="register_buffer, or make the tensor with device=x.device")
def device(subject: Subject) -> str | None:
    """on another device every tensor is there: no constant stays on the CPU"""
    module, inputs = subject.made()
    module.to("meta")
    with torch.no_grad(), DevicesMeet("meta") as met:
        try:
            outputs = list(tensors(call(module, map_tensors(lambda t: t.to("meta"), inputs))))
        except Exception as error:
            if not met.places:
                return not_applicable(f"it does not run on the meta device: {_first_line(error)}")
            outputs = []
    if met.places:
        raise FaultError(
            f"a tensor on the CPU meets those of the module's device ({met.places[0]})"
        )
    if any(not o.is_meta for o in outputs):
        raise FaultError("an output is on the CPU whatever device the module is on")
    return None


@check("values", remedy="stay in tensors: torch.where, masks, torch.clamp")
def values(subject: Subject) -> str | None:
    """forward reads no value of a tensor into Python, which would wait for the device"""
    module, inputs = subject.made()
    ghosts = map_tensors(lambda t: t.to("meta"), inputs)
    with torch.no_grad(), ReadsOfValues() as found:
        try:  # off the CPU, where a check of values costs nothing
            call(subject.module().to("meta"), ghosts)
        except Exception:
            if not found.places:
                call(module, inputs)
    if found.places:
        raise FaultError(
            f"forward reads a value of a tensor, as .item(), float() or `if` do ({found.places[0]})"
        )
    return None
