"""Correctness before time: a block gets a time only after its results match the reference."""

import contextlib
import copy
import gc
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

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
KINDS = ("output", "gradient of input", "gradient of the parameter", "buffer")
Results = Mapping[str, Tensor | None]  # `output 0`, `gradient of input 0`, `buffer norm.mean`, ...


class WrongResultError(RuntimeError):
    """A block's numbers are wrong on this device and dtype; it gets no time."""


class Checker:
    """Compares the passes that are timed with the block's reference form in float64.

    Both sides get the same rounded inputs, so only the rounding of the arithmetic remains, and half
    of the dtype's digits must agree: each tensor's root mean square of the difference, relative to
    its own. If cancellation or a kink leaves fewer digits, the limit is `MARGIN` times the effect
    of random rounding on the reference form.
    """

    def __init__(
        self, entry: Entry, config: dict[str, Any], bound: Bound, settings: Settings
    ) -> None:
        self.entry, self.bound, self.settings = entry, bound, settings
        self.limit = half_the_digits(settings.computed)
        self.twin = build(entry.name, **config, dtype=torch.float64, device="cpu")

    def check(self) -> float:
        """The largest error, after the block's reference vectors, of both passes.

        Gradients of a block without reference vectors are compared with finite differences too.

        Raises WrongResultError, naming the wrong result and its error.
        """
        verdicts = verify(self.entry.name)
        for verdict in verdicts:
            if not verdict.passed:
                raise self._wrong(
                    f"reference case {verdict.case!r} is off by {verdict.error:.1e} in "
                    f"{verdict.worst}"
                )
        worst = max(self._compared(train) for train in (False, True))
        slopes = gradcheck.errors(self.twin, self.bound.inputs, self.bound.grads)
        for name, error in () if verdicts else slopes:
            if not error <= gradcheck.LIMIT:
                raise self._wrong(
                    f"the gradient of {name} disagrees with finite differences (off by "
                    f"{error:.1e}, limit {gradcheck.LIMIT:.0e})"
                )
        return worst

    def check_again(self) -> None:
        """After the timing: still right, every training result finite, and no memory kept.

        Raises WrongResultError, naming what is off.
        """
        self._compared(train=False)
        sizes = []
        with self.bound.passes.training.ready() as step, _watched():
            for _ in range(CALLS):
                if not all(bool(t.isfinite().all()) for t in tensors(step())):
                    raise self._wrong("not finite after many calls")
                sizes.append(_live_bytes(self.settings))
        if all(later > earlier for earlier, later in itertools.pairwise(sizes)):
            raise self._wrong(
                f"it keeps {sizes[-1] - sizes[-2]:,} bytes more with every training step"
            )

    def _compared(self, train: bool) -> float:
        """The largest error of one pass; rounded runs only where one is past the limit."""
        self.twin.load_state_dict(self.bound.block.state_dict())
        state = copy.deepcopy(self.twin.state_dict())
        found, wanted = self._found(train), self._wanted(train)
        errors = _errors(found, wanted, {})
        noise: dict[str, float] = {}
        for seed in range(DRAWS):
            if not any(self.limit < error < math.inf for error in errors.values()):
                break
            self.twin.load_state_dict(state)
            dtype = self.settings.computed
            with StochasticRounding(dtype, seed, SLACK[dtype]):
                rounded = self._wanted(train)
            for what, off in differences(rounded, wanted, size=root_mean_square).items():
                if math.isfinite(off):
                    noise[what] = max(noise.get(what, 0.0), MARGIN * off / self.limit)
            errors = _errors(found, wanted, noise)
        for what, error in errors.items():
            if not error <= self.limit:
                when = "training" if train else "inference"
                infinite = error == math.inf
                far = "absent, misshapen or infinite," if infinite else f"off by {error:.1e}"
                raise self._wrong(
                    f"{when}: {what} is {far} from the reference form in float64 (limit "
                    f"{self.limit:.0e})"
                )
        return max(errors.values(), default=0.0)

    def _found(self, train: bool) -> Results:
        """What the passes that are to be timed give."""
        torch.manual_seed(2)
        passes = self.bound.passes
        with (passes.training if train else passes.forward).ready() as step:
            output, grads = step() if train else (step(), ())
        if not any(True for _ in tensors(output)):
            raise self._wrong(f"its output {output!r} has no tensor")
        legal = {self.settings.stored, self.settings.computed}
        for i, result in enumerate(tensors(output)):
            if result.is_floating_point() and result.dtype not in legal:
                raise self._wrong(f"output {i} is {result.dtype}, not {self.settings.stored}")
        return self._named(output, grads, self.bound.block)

    def _wanted(self, train: bool) -> Results:
        """What the reference form gives on the same numbers."""
        inputs = leaves(self.bound.inputs, torch.float64, "cpu")
        positional, keywords = arguments(self.twin.train(train), inputs)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        with torch.set_grad_enabled(train), reference_forms():
            output = self.twin(*positional, **keywords)
        drawn = not torch.equal(before, torch.get_rng_state())
        if drawn and (self.settings.kind != "cpu" or self.settings.mode == "compiled"):
            raise self._wrong(  # nothing else draws the same numbers for both sides
                "its training draws random numbers, which can be checked on the CPU in eager mode "
                "alone; build it with dropout=0"
            )
        if not train:
            return self._named(output, (), self.twin)
        parts = [t for t in (*tensors(inputs), *self.twin.parameters()) if t.requires_grad]
        grads = [grad.to("cpu", torch.float64) for grad in self.bound.grads]
        return self._named(output, gradcheck.derived(output, parts, grads), self.twin)

    def _named(self, output: Any, grads: tuple[Tensor | None, ...], block: nn.Module) -> Results:
        return {
            **{f"output {i}": t for i, t in enumerate(tensors(output))},
            **dict(zip(self.bound.wanted, grads, strict=bool(grads))),
            **{f"buffer {key}": buffer for key, buffer in block.named_buffers()},
        }

    def _wrong(self, reason: str) -> WrongResultError:
        return WrongResultError(f"{self.entry.name} is not timed: {reason}")


def _errors(found: Results, wanted: Results, noise: Mapping[str, float]) -> dict[str, float]:
    """Each result's error relative to its own size, or to its noise where that is larger."""
    errors: dict[str, float] = {}
    for kind in KINDS:
        ours, right = ({k: t for k, t in r.items() if k.startswith(kind)} for r in (found, wanted))
        errors |= relative_errors(ours, right, size=root_mean_square, noise=noise)
    return errors


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Within it the garbage collector, and what it lists, pass over what was there before."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


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
