"""Checks of what a call leaves alone and keeps apart: inputs, state, samples, time steps."""

import copy
import functools
import inspect
import math
import random
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import _torch
from ...registry import Inputs
from ..closeness import assert_close
from ..inputs import batch_axis, call, leaves, map_tensors, tensors
from ..locate import first_that_differs
from ..modes import first_write_to
from ..outcome import FaultError, check, is_refusal, not_applicable, refused, require
from ..resize import batch_size, leading
from ..step import assert_same, named_inputs, step
from ..subject import Subject, registered
from .calls import BOTH

RUNNING = ("running_mean", "running_var", "num_batches_tracked")


@check("untouched", capability="untouched", remedy="work on a new tensor: x = x * y, not x *= y")
def untouched(subject: Subject, modes: Sequence[bool] = BOTH) -> str | None:
    """inputs are never written to; nor, in eval mode, are parameters and buffers"""
    for train in modes:
        module, inputs = subject.made(train=train)
        before, state = copy.deepcopy(inputs), copy.deepcopy(module.state_dict())
        with torch.no_grad(), first_write_to(inputs) as found:
            call(module, inputs)
        for (name, now), old in zip(named_inputs(inputs).items(), tensors(before), strict=True):
            if found or not torch.equal(now, old):
                where = f" ({found[0]})" if found else ""
                raise FaultError(f"input {name} is changed in place{where}")
        module.load_state_dict(state)
        _untouched_in_training(module, before, state, train)
    return None


def _untouched_in_training(
    module: nn.Module, before: Inputs, state: Mapping[str, Tensor], train: bool
) -> None:
    points = leaves(before)
    versions = [_torch.version(t) for t in tensors(points)]
    outputs = [t for t in tensors(call(module, points)) if t.requires_grad]
    if outputs:
        sum((t.square().sum() for t in outputs), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    now = [_torch.version(t) for t in tensors(points)]
    require(now == versions, "an input is changed in place")
    with torch.no_grad():
        call(module, points)
    now = [_torch.version(t) for t in tensors(points)]
    require(now == versions, "an input is changed in place under no_grad")
    assert_same(points, before)
    for key, value in module.state_dict().items():
        running = train and key.endswith(RUNNING)
        if not (running or torch.equal(value, state[key])) and not (
            train and _is_buffer(module, key)
        ):
            raise FaultError(
                f"a call in {'train' if train else 'eval'} mode changes {key}",
                "update state in train mode alone (if self.training)",
            )


def _is_buffer(module: nn.Module, key: str) -> bool:
    """Whether a foreign module keeps statistics of its own there, as in train mode it may."""
    own = type(module).__module__.startswith("attnzoo.")
    return not own and key in dict(module.named_buffers())


@check("aliasing", remedy="return a new tensor: y = x.clone(), or x + 0 of it")
def aliasing(subject: Subject) -> str | None:
    """the output is no view of an input, and takes a residual in place"""
    module, inputs = subject.made()
    if not subject.registered:
        with torch.no_grad():
            output = next(tensors(call(module, inputs)))
        for name, tensor in named_inputs(inputs).items():
            if tensor.numel() and _storage(tensor) == _storage(output):
                raise FaultError(
                    f"the output is a view of input {name}: y += residual would change it"
                )
    output = next(tensors(call(module, leaves(inputs))))
    if not output.is_floating_point():
        return not_applicable("the output is no floating-point number")
    residual = torch.randn_like(output)
    wanted = output.detach() + residual
    assert_same(output.add_(residual).detach(), wanted)
    return None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


ISOLATED = (math.nan, math.inf, 1e30)


@check("isolation", capability="isolation", remedy="reduce over the axes of one sample alone")
def isolation(subject: Subject, values: Sequence[float] = ISOLATED) -> str | None:
    """in eval mode a sample's output is the same beside any other, NaN included"""
    for value in values:
        module, inputs = subject.in_float64()
        if not subject.registered and batch_size(inputs) < 2:
            return not_applicable("it takes no batch of two samples")
        alone = _of_one_sample(subject, module, inputs)
        poisoned = map_tensors(Tensor.clone, inputs)
        own = {k: v for k, v in poisoned.items() if batch_axis(module, k) is not None}
        map_tensors(functools.partial(_fill, value=value), subject.samples(own, slice(1, None)))
        for others in (inputs, poisoned):
            for wants_gradient in (False, True):
                outputs = call(module, leaves(others) if wants_gradient else others)
                together = [t.detach()[:1] for t in _batched(subject, outputs, inputs)]
                _is_isolated(subject, module, inputs, together, alone)
    return None


def _fill(tensor: Tensor, value: float) -> None:
    if tensor.is_floating_point():
        tensor.fill_(value)


def _batched(subject: Subject, outputs: Any, inputs: Inputs) -> list[Tensor]:
    """The outputs that have a sample for each of the inputs'."""
    count = batch_size(inputs)
    every = list(tensors(outputs))
    return every if subject.registered else [t for t in every if t.ndim and t.shape[0] == count]


def _of_one_sample(subject: Subject, module: nn.Module, inputs: Inputs) -> list[Tensor]:
    together = _batched(subject, call(module, inputs), inputs)
    first = subject.samples(inputs, slice(1))
    alone = [t for t in tensors(call(module, first)) if t.ndim]
    if not subject.registered:
        kept = [t.shape[1:] for t in together]
        alone = [t for t in alone if t.shape[1:] in kept][: len(together)]
    return alone


def _is_isolated(
    subject: Subject, module: nn.Module, inputs: Inputs, found: list[Tensor], wanted: list[Tensor]
) -> None:
    if [t.shape for t in found] != [t.shape for t in wanted]:
        raise FaultError("the number of samples changes the shape of one sample's output")
    try:
        assert_close(found, wanted)
    except AssertionError as error:
        if subject.registered:
            raise
        raise FaultError(*_why_mixed(subject, module, inputs)) from error


def _why_mixed(subject: Subject, module: nn.Module, inputs: Inputs) -> tuple[str, str]:
    """Statistics of the batch do not see the order of the other samples; a mixed axis does."""
    order = torch.tensor([0, *range(batch_size(inputs) - 1, 0, -1)])

    def turned(tensor: Tensor) -> Tensor:
        same = tensor.ndim and len(tensor) == len(order)
        return tensor[order] if same else tensor

    path = first_that_differs(module, inputs, subject.samples(inputs, slice(1)))
    at = f" (first in {path})" if path else ""
    a, b = (next(tensors(call(module, i)))[:1] for i in (inputs, map_tensors(turned, inputs)))
    cause = f"in eval mode a sample's output depends on the other samples{at}"
    if len(order) > 2 and torch.allclose(a, b, rtol=1e-9, atol=1e-12):
        return (
            f"{cause}, whatever their order: a mean, variance, norm or softmax over the batch axis",
            "reduce over a sample's own axes; BatchNorm by hand needs running statistics for eval",
        )
    return (
        f"{cause} and on their order: the batch axis is mixed up with another",
        "look for a reshape, transpose or attention that takes the batch axis for another",
    )


@check("modes", capability="modes", remedy="pass training=self.training to F.dropout and the like")
def modes(subject: Subject) -> str | None:
    """BatchNorm's buffers and dropout act in train mode, and in no other"""
    silent = _with_dropout(subject, 0.0)
    module, inputs = silent.made()
    norms = [m for m in module.modules() if _torch.normalizes_batches(m) and _tracks(m)]
    state = copy.deepcopy(module.state_dict())
    quiet = list(tensors(call(module, inputs)))
    _no_noise_in_eval(module, inputs, quiet)
    counts = [_calls(norm) for norm in norms]
    trained = list(tensors(call(module.train(), inputs)))
    for norm, count in zip(norms, counts, strict=True):
        if subject.registered:
            require((count, _calls(norm)) == (0, 1), "BatchNorm does not count its batches")
            require(bool(norm.get_buffer("running_mean").any()), "BatchNorm keeps no running mean")
        if _calls(norm) == count and norm.training:
            raise FaultError("a BatchNorm's running statistics do not move in train mode")
    if subject.registered and not norms:
        assert_close(trained, quiet)
    if silent is not subject:
        _dropout_acts(subject, state, inputs, quiet, trained)
    return None


def _with_dropout(subject: Subject, rate: float) -> Subject:
    """A registered block with another rate; the subject itself where it has none."""
    if subject.entry is None or "dropout" not in subject.entry.signature.parameters:
        return subject
    return registered(subject.name, **{**subject.config, "dropout": rate})


def _tracks(norm: nn.Module) -> bool:
    return getattr(norm, "num_batches_tracked", None) is not None


def _calls(norm: Any) -> int:
    return int(norm.num_batches_tracked)


def _no_noise_in_eval(module: nn.Module, inputs: Inputs, quiet: list[Tensor]) -> None:
    before = torch.get_rng_state()
    torch.manual_seed(5)
    again = list(tensors(call(module, inputs)))
    torch.set_rng_state(before)
    if not all(torch.equal(a, b) for a, b in zip(again, quiet, strict=True)):
        raise FaultError("two calls in eval mode differ: dropout or noise acts in eval mode")


def _dropout_acts(
    subject: Subject,
    state: dict[str, Tensor],
    inputs: Inputs,
    quiet: list[Tensor],
    silent: list[Tensor],
) -> None:
    """Dropout of a registered block: off in eval mode, drawn by the seed in train mode."""
    block = _with_dropout(subject, 0.5).build()
    block.load_state_dict(state)
    assert_close(list(tensors(call(block.eval(), inputs))), quiet)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        block.load_state_dict(state)
        drawn.append(list(tensors(call(block.train(), inputs))))
    assert_same(drawn[0], drawn[1])
    for other in (drawn[2], silent):
        pairs = zip(drawn[0], other, strict=True)
        require(not all(torch.equal(a, b) for a, b in pairs), "dropout=0.5 drops nothing")


@check("deterministic", capability="deterministic", remedy="draw with torch's own generator")
def deterministic(subject: Subject, modes: Sequence[bool] = BOTH) -> str | None:
    """two steps are bitwise equal; so torch.use_deterministic_algorithms finds"""
    for train in modes:
        module, inputs = subject.made(train=train)
        state = copy.deepcopy(module.state_dict())
        found, drawn = [], _draws_elsewhere()
        for strict in (False, False, True):
            torch.manual_seed(0)
            module.load_state_dict(state)
            torch.use_deterministic_algorithms(strict)  # and memory starts as NaN
            try:
                found.append(step(module, inputs))
            finally:
                torch.use_deterministic_algorithms(False)
        try:
            assert_same(found[1], found[0])
            assert_same(found[2], found[0])
        except AssertionError:
            raise FaultError(
                f"two {'training' if train else 'eval'} steps from the same torch.manual_seed "
                f"differ: {_who_drew(drawn)}"
            ) from None
    return None


def _draws_elsewhere() -> tuple[Any, Any]:
    """The states of Python's and NumPy's global generators."""
    numpy = sys.modules.get("numpy")
    return random.getstate(), None if numpy is None else str(numpy.random.get_state())


def _who_drew(before: tuple[Any, Any]) -> str:
    now = _draws_elsewhere()
    for name, a, b in zip(("random", "numpy.random"), before, now, strict=True):
        if a != b:
            return f"it draws from {name}, which torch's seed does not set"
    return "random numbers from elsewhere, memory that nobody wrote, or state kept between calls"


@check("seed", remedy="leave torch.manual_seed to the caller; keep a torch.Generator of your own")
def seed(subject: Subject) -> str | None:
    """neither building nor calling the module seeds the global generator"""
    for what in ("building it", "a call"):
        states = []
        for number in (11, 12):
            torch.manual_seed(number)
            module = subject.build()
            if what == "a call":
                torch.manual_seed(number)
                call(module.eval(), subject.inputs())
                call(module.train(), subject.inputs())
            states.append(torch.get_rng_state())
        if torch.equal(*states):
            raise FaultError(f"{what} seeds torch's global generator (torch.manual_seed)")
    return None


@check("stateless", remedy="keep nothing of a call, or register a buffer of fixed size")
def stateless(subject: Subject) -> str | None:
    """calls leave nothing behind in lists, dicts and sets of the module"""
    module, inputs = subject.made()
    sizes = []
    with torch.no_grad():
        for _ in range(4):
            call(module, inputs)
            sizes.append(_kept(module))
    for key in sizes[-1]:
        counts = [size.get(key, 0) for size in sizes]
        if counts[1] < counts[2] < counts[3]:
            raise FaultError(
                f"{key} grows with every call ({counts[2]} items, then {counts[3]}): state in a "
                "Python container, which no state dict, copy or compiler sees"
            )
    return None


def _kept(module: nn.Module) -> dict[str, int]:
    """Items in the containers among the attributes of every submodule."""
    found = {}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if not (key.startswith("_") and key in vars(nn.Module())):
                found[f"{path}.{key}".lstrip(".")] = _items(value)
    return found


def _items(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(1 + _items(v) for v in value.values())
    if isinstance(value, (list, tuple, set, frozenset)) or type(value).__name__ == "deque":
        return sum(1 + _items(v) for v in value)
    return 0


@check("causal", remedy="mask attention with triu(1), pad convolutions on the left alone")
def causal(subject: Subject) -> str | None:
    """a module that declares `causal` lets no step see a later one"""
    module, inputs = subject.made(dtype=torch.float64)
    first = leading(inputs)
    if not getattr(module, "causal", False):
        return not_applicable("the module does not declare `causal`")
    axis = getattr(module, "time_axis", 1 if first is None or first.ndim != 4 else 2)
    if first is None or first.ndim < 3 or first.shape[axis] < 2:
        return not_applicable("its inputs have no axis of time")
    steps = first.shape[axis]
    for at in sorted({1, steps // 2, steps - 1}):
        later = map_tensors(
            functools.partial(_later_changed, axis=axis, steps=steps, at=at), inputs
        )
        pairs = zip(*(tensors(call(module, i)) for i in (inputs, later)), strict=True)
        for a, b in pairs:
            if a.ndim > axis and a.shape[axis] == steps:
                _no_leak(a.narrow(axis, 0, at), b.narrow(axis, 0, at), at)
    return None


def _later_changed(tensor: Tensor, axis: int, steps: int, at: int) -> Tensor:
    fits = tensor.ndim > axis and tensor.shape[axis] == steps
    if not (fits and tensor.is_floating_point()):
        return tensor
    changed = tensor.clone()
    part = changed.narrow(axis, at, steps - at)
    part += 3 * torch.randn_like(part)
    return changed


def _no_leak(found: Tensor, wanted: Tensor, at: int) -> None:
    try:
        assert_close(found, wanted)
    except AssertionError:
        raise FaultError(
            f"a causal leak: a change at step {at} and later moves the outputs before it"
        ) from None


MASKS = ("key_padding_mask", "padding_mask", "attention_mask", "attn_mask", "mask")


@check("mask", remedy="fill the masked scores with -inf before the softmax, and zero masked values")
def mask(subject: Subject) -> str | None:
    """a mask acts, and what key_padding_mask ignores moves no other step's output"""
    module, inputs = subject.made(dtype=torch.float64)
    names = [n for n in inspect.signature(module.forward).parameters if n in MASKS]
    given = [n for n in names if isinstance(inputs.get(n), Tensor)]
    try:
        if "key_padding_mask" in names:
            return _padding_ignored(module, inputs)
        if not given:
            return not_applicable("forward takes no mask, or the example has none")
        return _mask_acts(module, inputs, given[0])
    except (ValueError, TypeError) as error:
        if not is_refusal(error):
            raise
        return refused(error)


def _padding_ignored(module: nn.Module, inputs: Inputs) -> str | None:
    first = leading(inputs)
    axis = (batch_axis(module, "x") or 0) + 1
    if first is None or first.ndim < 3 or first.shape[axis] < 3:
        return not_applicable("its inputs have no axis of time")
    if first.ndim == 4:
        return not_applicable("where the time of four axes stands is for its own tests to know")
    batch, steps = first.shape[0], first.shape[axis]
    kept = steps - max(1, steps // 3)
    ignored = torch.zeros(batch, steps, dtype=torch.bool)
    ignored[:, kept:] = True
    masked: Inputs = {**inputs, "key_padding_mask": ignored}
    moved = map_tensors(lambda t: _later_changed(t, axis, steps, kept), masked)
    by_name = [{**i, "key_padding_mask": ignored} for i in (masked, moved)]
    pairs = zip(*(tensors(_by_keyword(module, i)) for i in by_name), strict=True)
    for a, b in pairs:
        over_time = a.ndim > axis and a.shape[axis] == steps
        a, b = (t.narrow(axis, 0, kept) if over_time else t for t in (a, b))
        try:
            assert_close(a, b)
        except AssertionError:
            raise FaultError(
                "key_padding_mask is ignored: what it hides moves the outputs of other steps"
            ) from None
    return None


def _by_keyword(module: nn.Module, inputs: Inputs) -> Any:
    key, first = next(iter(inputs.items()))
    return module(first, **{k: v for k, v in inputs.items() if k != key})


def _mask_acts(module: nn.Module, inputs: Inputs, name: str) -> str | None:
    given = inputs[name]
    if not isinstance(given, Tensor):
        return not_applicable("its mask is no tensor")
    other = ~given if given.dtype == torch.bool else given.roll(1, -1) + given.amax() / 2
    other = other.to(given.dtype)
    if given.dtype == torch.bool:
        other.flatten()[:1] = given.flatten()[:1]
    changed: Inputs = {**inputs, name: other}
    pairs = zip(*(tensors(call(module, i)) for i in (inputs, changed)), strict=True)
    if all(torch.equal(a, b) for a, b in pairs):
        raise FaultError(f"{name} is ignored: another one gives the same output")
    return None
