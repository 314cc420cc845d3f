"""Is it right here? No time is printed for a block that is not."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.by_hand import plain_forms
from ..reference import verify
from ..registry import Entry, build
from .passes import Bound, derived
from .settings import Settings
from .workload import arguments, leaves, tensors

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
    arithmetic's own rounding, for which half of the dtype's digits are asked.

    Raises WrongResultError, naming what is off and by how much.
    """
    for verdict in verify(entry.name):
        if not verdict.passed:
            raise _wrong(entry, f"reference case {verdict.case!r}: {verdict.worst}", verdict.error)
    limit = math.sqrt(torch.finfo(settings.computed).eps)
    twin = build(entry.name, **config, dtype=torch.float64, device="cpu")
    worst = 0.0
    for name, compare in (("inference", _inference), ("training", _training)):
        twin.load_state_dict(bound.block.state_dict())
        found, wanted = compare(entry, bound, twin, settings)
        for what, error in _errors(found, wanted):
            if not error <= limit:
                raise _wrong(entry, f"{name}: {what}", error, limit)
            worst = max(worst, error)
    return Checked(worst, limit)


def _wrong(entry: Entry, what: str, error: float, limit: float | None = None) -> WrongResultError:
    size = "is missing, misshapen or not finite" if math.isinf(error) else f"is off by {error:.1e}"
    held = "" if limit is None else f" against its plain form in float64 (limit {limit:.0e})"
    return WrongResultError(f"{entry.name} is not timed: {what} {size}{held}")


def _inference(
    entry: Entry, bound: Bound, twin: nn.Module, settings: Settings
) -> tuple[Results, Results]:
    with bound.passes.forward.ready() as step:
        found = list(tensors(step()))
    _same_dtype(entry, found, settings)
    positional, keywords = arguments(twin, leaves(bound.inputs, torch.float64, "cpu"))
    with torch.no_grad(), plain_forms():
        wanted = list(tensors(twin.eval()(*positional, **keywords)))
    return {"output": _named(found)}, {"output": _named(wanted)}


def _training(
    entry: Entry, bound: Bound, twin: nn.Module, settings: Settings
) -> tuple[Results, Results]:
    torch.manual_seed(2)
    with bound.passes.training.ready() as step:
        output, grads = step()
    found = _results(output, dict(zip(bound.wanted, grads, strict=True)), bound.block)
    _same_dtype(entry, list(tensors(output)), settings)
    mine = leaves(bound.inputs, torch.float64, "cpu")
    positional, keywords = arguments(twin, mine)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    with plain_forms():
        output = twin.train()(*positional, **keywords)
    if not torch.equal(before, torch.get_rng_state()):
        _repeatable(entry, settings)
    parts = [*(t for t in tensors(mine) if t.requires_grad), *twin.parameters()]
    right = derived(output, parts, [g.to("cpu", torch.float64) for g in bound.grads])
    return found, _results(output, dict(zip(bound.wanted, right, strict=True)), twin)


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


def _errors(found: Results, wanted: Results) -> Iterator[tuple[str, float]]:
    """Each result's error; infinite where one side lacks it, its shape differs or it is not finite.

    A tensor smaller than a thousandth of the largest of its kind is held to that size: a gradient
    that is zero but for rounding has no digits of its own.
    """
    for kind, theirs in wanted.items():
        floor = 1e-3 * max((_size(t) for t in theirs.values() if t is not None), default=0.0)
        for key in found[kind].keys() | theirs.keys():
            ours, right = found[kind].get(key), theirs.get(key)
            if ours is None or right is None or ours.shape != right.shape:
                yield f"{kind} {key}", math.inf
            else:
                error = _size(ours.detach().to("cpu", torch.float64) - right)
                relative = error / max(_size(right), floor) if error else 0.0
                yield f"{kind} {key}", relative if math.isfinite(relative) else math.inf


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt()) if tensor.numel() else 0.0
