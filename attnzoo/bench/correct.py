"""Correctness before time: a block gets a time only after its results match the reference."""

import copy
import gc
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..autograd import reference_forms
from ..reference.cases import verify
from ..reference.closeness import (
    differences,
    half_the_digits,
    relative_errors,
    root_mean_square,
)
from ..registry import Entry, build
from ..testing import gradcheck
from ..testing.inputs import arguments, leaves, tensors
from ..testing.rounding import SLACK, StochasticRounding
from .passes import Bound
from .settings import Settings

DRAWS = 32  # of random roundings at most
MARGIN = 2  # times as far as those move the reference form, a right block may be off
CALLS = 4  # of a training step, while memory is watched
Results = dict[str, dict[str, Tensor | None]]  # a group of each kind, by name


class WrongResultError(RuntimeError):
    """A block's numbers are wrong on this device and dtype; it gets no time."""


class Check(NamedTuple):
    """The largest relative error that was seen, its limit, and the reference form."""

    error: float
    limit: float
    twin: nn.Module


def check(entry: Entry, config: dict[str, Any], bound: Bound, settings: Settings) -> Check:
    """Compare the passes that are to be timed with the block's reference form in float64.

    First the block's reference vectors are run again. Then the inference pass's outputs and the
    training step's outputs, gradients and buffers are compared, each tensor's root mean square of
    the difference relative to its own. Both sides get the same rounded inputs, so only the rounding
    of the arithmetic remains, and half of the dtype's digits must agree. If cancellation or a kink
    leaves fewer digits, the limit is `MARGIN` times the effect of random rounding on the reference
    form.

    Raises WrongResultError, naming the wrong result and its error.
    """
    verdicts = verify(entry.name)
    for verdict in verdicts:
        if not verdict.passed:
            raise WrongResultError(
                f"{entry.name} is not timed: reference case {verdict.case!r} is off by "
                f"{verdict.error:.1e} in {verdict.worst}"
            )
    limit = half_the_digits(settings.computed)
    twin = build(entry.name, **config, dtype=torch.float64, device="cpu")
    worst = max(_compare(entry, bound, twin, train, settings, limit) for train in (False, True))
    for name, error in () if verdicts else gradcheck.errors(twin, bound.inputs, bound.grads):
        if not error <= gradcheck.LIMIT:
            raise WrongResultError(
                f"{entry.name} is not timed: the gradient of {name} disagrees with finite "
                f"differences (off by {error:.1e}, limit {gradcheck.LIMIT:.0e})"
            )
    return Check(worst, limit, twin)


def check_again(entry: Entry, bound: Bound, checked: Check, settings: Settings) -> None:
    """After the timing: still right, every training result finite, and no memory kept.

    Raises WrongResultError, naming what is off.
    """
    _compare(entry, bound, checked.twin, False, settings, checked.limit)
    with bound.passes.training.ready() as step:
        sizes = []
        for _ in range(CALLS):
            results = list(tensors(step()))
            if not all(bool(t.isfinite().all()) for t in results):
                raise WrongResultError(f"{entry.name} is not timed: not finite after many calls")
            del results
            sizes.append(_live_bytes(settings))
    if all(later > earlier for earlier, later in itertools.pairwise(sizes)):
        raise WrongResultError(
            f"{entry.name} is not timed: it keeps {sizes[-1] - sizes[-2]:,} bytes more with every "
            "training step"
        )


def _live_bytes(settings: Settings) -> int:
    gc.collect()
    if settings.kind == "cuda":
        return torch.cuda.memory_allocated(settings.device)
    # By `type`: `isinstance` can be overridden by the objects of other libraries.
    return sum(_bytes(t) for t in gc.get_objects() if issubclass(type(t), Tensor))


def _bytes(tensor: Tensor) -> int:
    try:
        strided = tensor.layout == torch.strided and tensor.device.type != "meta"
        return tensor.untyped_storage().nbytes() if strided else 0
    except RuntimeError:  # a tensor without storage, such as an undefined gradient
        return 0


def _compare(
    entry: Entry, bound: Bound, twin: nn.Module, train: bool, settings: Settings, limit: float
) -> float:
    """The largest error of one pass; WrongResultError where it is past the limit."""
    errors = _errors_of(entry, bound, twin, train, settings, limit)
    for what, error in errors.items():
        if not error <= limit:
            when = "training" if train else "inference"
            off = math.isfinite(error)
            size = f"is off by {error:.1e}" if off else "is absent, misshapen or infinite,"
            raise WrongResultError(
                f"{entry.name} is not timed: {when}: {what} {size} from the reference form in "
                f"float64 (limit {limit:.0e})"
            )
    return max(errors.values(), default=0.0)


def _errors_of(
    entry: Entry, bound: Bound, twin: nn.Module, train: bool, settings: Settings, limit: float
) -> dict[str, float]:
    """Every result's error; rounded runs of the reference form only where one is too big."""
    twin.load_state_dict(bound.block.state_dict())
    state = copy.deepcopy(twin.state_dict())
    found = _found(entry, bound, train, settings)
    wanted = _reference(entry, bound, twin, train, settings)
    errors = _errors(found, wanted, {})
    noise: dict[str, float] = {}
    for seed in range(DRAWS):
        if not any(limit < error < math.inf for error in errors.values()):
            break
        twin.load_state_dict(state)
        with StochasticRounding(settings.computed, seed, SLACK[settings.computed]):
            rounded = _reference(entry, bound, twin, train, settings)
        for kind in wanted:
            moved = differences(rounded[kind], wanted[kind], size=root_mean_square)
            for what, size in moved.items():
                if math.isfinite(size):
                    noise[what] = max(noise.get(what, 0.0), MARGIN * size / limit)
        errors = _errors(found, wanted, noise)
    return errors


def _found(entry: Entry, bound: Bound, train: bool, settings: Settings) -> Results:
    """What the passes that are to be timed give."""
    torch.manual_seed(2)
    one = bound.passes.training if train else bound.passes.forward
    with one.ready() as step:
        output, grads = step() if train else (step(), ())
    outputs = list(tensors(output))
    if not outputs:
        raise WrongResultError(f"{entry.name} is not timed: its output {output!r} has no tensor")
    _same_dtype(entry, outputs, settings)
    named = dict(zip(bound.wanted, grads, strict=True)) if train else {}
    return _results(output, named, bound.block)


def _reference(
    entry: Entry, bound: Bound, twin: nn.Module, train: bool, settings: Settings
) -> Results:
    """What the reference form gives on the same numbers."""
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
    grads = gradcheck.derived(output, parts, [g.to("cpu", torch.float64) for g in bound.grads])
    return _results(output, dict(zip(bound.wanted, grads, strict=True)), twin)


def _repeatable(entry: Entry, settings: Settings) -> None:
    """Only the CPU's own generator draws the same numbers for a block and its reference form."""
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
        "outputs": {f"output {i}": t for i, t in enumerate(tensors(output))},
        "of inputs": {f"gradient of {k}": g for k, g in grads.items() if k.startswith("input")},
        "of parameters": {
            f"gradient of the {k}": g for k, g in grads.items() if k.startswith("parameter")
        },
        "buffers": {f"buffer {k}": t for k, t in block.named_buffers()},
    }


def _errors(found: Results, wanted: Results, noise: Mapping[str, float]) -> dict[str, float]:
    """Each result's error relative to its own size, or to its noise where that is larger."""
    return {
        what: error
        for kind in wanted
        for what, error in relative_errors(
            found[kind], wanted[kind], size=root_mean_square, noise=noise
        ).items()
    }
