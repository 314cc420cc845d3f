"""Is it right here? No time is printed for a block that is not."""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..autograd import reference_forms
from ..reference.cases import verify
from ..registry import Entry, build
from ..testing import gradcheck
from ..testing.inputs import arguments, leaves, tensors
from ..testing.rounding import Rounded
from .passes import Bound, derived
from .settings import Settings

DRAWS = 32  # of random roundings at most: a unit near its kink turns over in few of them
EXCUSE = {  # times as far as those move the plain form, a right block may be off
    torch.float16: 4,
    torch.bfloat16: 4,
    torch.float32: 32,  # where sums are no more precise than their results
    torch.float64: 32,
}
Results = dict[str, dict[str, Tensor | None]]  # by kind, then by name


class WrongResultError(RuntimeError):
    """A block's numbers are wrong on this device and dtype; it gets no time."""


class Checked(NamedTuple):
    """The largest relative error that was seen, and what it was held to."""

    error: float
    limit: float


def check(entry: Entry, config: dict[str, Any], bound: Bound, settings: Settings) -> Checked:
    """Hold the passes that are to be timed to the block's plain form in float64 on the CPU.

    First the block's reference vectors are run again. Then the inference pass's outputs and the
    training step's outputs, gradients and buffers are compared, each tensor's root mean square of
    the difference with its own. Both sides see the same rounded numbers, so what is left is the
    arithmetic's own rounding, for which half of the dtype's digits are asked; where cancellation
    leaves fewer, `EXCUSE` times what roundings of that size do to the plain form.

    Raises WrongResultError, naming what is off and by how much.
    """
    verdicts = verify(entry.name)
    for verdict in verdicts:
        if not verdict.passed:
            raise WrongResultError(
                f"{entry.name} is not timed: reference case {verdict.case!r} is off by "
                f"{verdict.error:.1e} in {verdict.worst}"
            )
    limit, worst = math.sqrt(torch.finfo(settings.computed).eps), 0.0
    twin = build(entry.name, **config, dtype=torch.float64, device="cpu")
    for train in (False, True):
        for what, error in _held(entry, bound, twin, train, settings, limit).items():
            if not error <= limit:
                raise _wrong(entry, "training" if train else "inference", what, error, limit)
            worst = max(worst, error)
    for name, error in () if verdicts else gradcheck.errors(twin, bound.inputs, bound.grads):
        if not error <= gradcheck.LIMIT:
            raise WrongResultError(
                f"{entry.name} is not timed: the gradient of {name} is no slope of its outputs "
                f"(off by {error:.1e}, limit {gradcheck.LIMIT:.0e})"
            )
    return Checked(worst, limit)


def _held(
    entry: Entry, bound: Bound, twin: nn.Module, train: bool, settings: Settings, limit: float
) -> dict[str, float]:
    """Every result's error; roughened runs of the plain form are made only where one is too big."""
    twin.load_state_dict(bound.block.state_dict())
    state = copy.deepcopy(twin.state_dict())
    found = _found(entry, bound, train, settings)
    wanted = _plain(entry, bound, twin, train, settings)
    errors = dict(_errors(found, wanted, {}))
    noise: dict[str, float] = {}
    for seed in range(DRAWS):
        if not any(limit < error < math.inf for error in errors.values()):
            break
        twin.load_state_dict(state)
        with Rounded(settings.computed, seed):
            rough = _plain(entry, bound, twin, train, settings)
        for what, size in _differences(rough, wanted):
            if math.isfinite(size):
                allowed = EXCUSE[settings.computed] * size / limit
                noise[what] = max(noise.get(what, 0.0), allowed)
        errors = dict(_errors(found, wanted, noise))
    return errors


def _wrong(entry: Entry, when: str, what: str, error: float, limit: float) -> WrongResultError:
    size = f"is off by {error:.1e}" if math.isfinite(error) else "is absent, misshapen or infinite,"
    held = f"from the plain form in float64 (limit {limit:.0e})"
    return WrongResultError(f"{entry.name} is not timed: {when}: {what} {size} {held}")


def _found(entry: Entry, bound: Bound, train: bool, settings: Settings) -> Results:
    """What the passes that are to be timed give."""
    torch.manual_seed(2)
    one = bound.passes.training if train else bound.passes.forward
    with one.ready() as step:
        output, grads = step() if train else (step(), ())
    _same_dtype(entry, list(tensors(output)), settings)
    named = dict(zip(bound.wanted, grads, strict=True)) if train else {}
    return _results(output, named, bound.block)


def _plain(entry: Entry, bound: Bound, twin: nn.Module, train: bool, settings: Settings) -> Results:
    """What the plain form gives on the same numbers."""
    mine = leaves(bound.inputs, torch.float64, "cpu")
    positional, keywords = arguments(twin.train(train), mine)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    with torch.set_grad_enabled(train), reference_forms():
        output = twin(*positional, **keywords)
    if not torch.equal(before, torch.get_rng_state()):
        _repeatable(entry, settings)
    if not train:
        return _results(output, {}, twin)
    parts = [*(t for t in tensors(mine) if t.requires_grad), *twin.parameters()]
    grads = derived(output, parts, [g.to("cpu", torch.float64) for g in bound.grads])
    return _results(output, dict(zip(bound.wanted, grads, strict=True)), twin)


def _repeatable(entry: Entry, settings: Settings) -> None:
    """Only the CPU's own generator draws the same numbers for a block and its plain form."""
    if settings.kind != "cpu" or settings.mode == "compiled":
        raise WrongResultError(
            f"{entry.name} is not timed: its training draws random numbers, which can be checked "
            "on the CPU in eager mode alone; build it with dropout=0"
        )


def _same_dtype(entry: Entry, outputs: list[Tensor], settings: Settings) -> None:
    legal = {settings.stored, settings.computed}
    for i, output in enumerate(outputs):
        if output.is_floating_point() and output.dtype not in legal:
            raise WrongResultError(
                f"{entry.name} is not timed: output {i} is {output.dtype}, not {settings.stored}"
            )


def _results(output: Any, grads: dict[str, Tensor | None], block: nn.Module) -> Results:
    return {
        "output": _named(list(tensors(output))),
        "gradient of": {k: g for k, g in grads.items() if k.startswith("input")},
        "gradient of the": {k: g for k, g in grads.items() if k.startswith("parameter")},
        "buffer": dict(block.named_buffers()),
    }


def _named(outputs: list[Tensor]) -> dict[str, Tensor | None]:
    return {str(i): output for i, output in enumerate(outputs)}


def _errors(
    found: Results, wanted: Results, noise: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    """Each result's error relative to its own size, or to its noise where that is larger.

    Infinite where one side lacks it, its shape differs or it is not finite. A tensor smaller than
    a thousandth of the largest of its kind is held to that size: a gradient that is zero but for
    rounding has no digits of its own.
    """
    for kind, theirs in wanted.items():
        sizes = {key: _size(t) for key, t in theirs.items() if t is not None}
        floor = 1e-3 * max(sizes.values(), default=0.0)
        for what, error in _differences({kind: found[kind]}, {kind: theirs}):
            scale = max(sizes.get(what.removeprefix(f"{kind} "), 0.0), floor, noise.get(what, 0.0))
            relative = error / scale if error and scale else error
            yield what, relative if math.isfinite(relative) else math.inf


def _differences(found: Results, wanted: Results) -> Iterator[tuple[str, float]]:
    for kind, theirs in wanted.items():
        for key in dict.fromkeys([*theirs, *found[kind]]):
            ours, right = found[kind].get(key), theirs.get(key)
            if ours is None and right is None:
                continue
            if ours is None or right is None or ours.shape != right.shape:
                yield f"{kind} {key}", math.inf
            else:
                yield f"{kind} {key}", _size(ours.detach().to("cpu", torch.float64) - right)


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0
