"""Correctness before time: a block is timed only after its results match a float64 reference."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..autograd import reference_forms
from ..reference.cases import verify
from ..reference.closeness import Tensors, half_the_digits
from ..registry import Entry, build
from ..testing import gradcheck
from ..testing.inputs import arguments, leaves, tensors
from ..testing.memory import kept_bytes
from ..testing.rounding import errors_beyond_rounding
from ..testing.step import finite
from .job import Settings
from .passes import Bound

Results = dict[str, Tensors]  # by kind and name


class WrongResultError(RuntimeError):
    """A block's numbers are wrong on this device and dtype, so it is not timed."""


class Checker:
    """Compares the passes that are timed with the block's reference form in float64.

    Both get the same rounded inputs, so that they differ only by the rounding of the arithmetic,
    and half of the dtype's digits must agree; fewer if cancellation or a kink leaves fewer.
    """

    def __init__(
        self, entry: Entry, config: dict[str, Any], bound: Bound, settings: Settings
    ) -> None:
        self.name, self.bound, self.settings = entry.name, bound, settings
        self.limit = half_the_digits(settings.computed)
        self.twin = build(entry.name, **config, dtype=torch.float64, device="cpu")

    def check(self) -> float:
        """The largest error of both passes, after the block's reference vectors have passed.

        If a block has no reference vectors, its gradients are compared with finite differences too.

        Raises WrongResultError, naming the wrong result and its error.
        """
        verdicts = verify(self.name)
        for one in (one for one in verdicts if not one.passed):
            raise self._wrong(
                f"reference case {one.case!r} is off by {one.error:.1e} in {one.worst}"
            )
        self.state = copy.deepcopy(self.bound.block.state_dict())
        self.first = self._found(train=False)
        inference = partial(self._reference, False, self.state)
        worst = self._require_close(self.first, inference, "inference")
        state = copy.deepcopy(self.bound.block.state_dict())
        training = partial(self._reference, True, state)
        worst = max(worst, self._require_close(self._found(train=True), training, "training"))
        slopes = gradcheck.errors(self.twin, self.bound.inputs, self.bound.grads)
        for name, error in () if verdicts else slopes:
            if not error <= gradcheck.LIMIT:
                raise self._wrong(
                    f"the gradient of {name} disagrees with finite differences (off by "
                    f"{error:.1e}, limit {gradcheck.LIMIT:.0e})"
                )
        return worst

    def check_again(self) -> None:
        """After the timing: still right, all results finite, and no memory kept by the calls.

        Raises WrongResultError, naming what is wrong.
        """
        self.bound.block.load_state_dict(self.state)
        self._require_close(self._found(train=False), lambda: self.first, "inference")
        for one in self.bound.passes:
            with one.ready() as step:
                if grown := kept_bytes(lambda: self._require_finite(step()), self.settings.device):
                    when = "training step" if one.train else "call"
                    raise self._wrong(f"it keeps {grown:,} bytes more with every {when}")

    def _require_finite(self, results: Any) -> None:
        if not finite(results):
            raise self._wrong("its results are not finite after many calls")

    def _require_close(self, found: Results, run: Callable[[], Results], when: str) -> float:
        """The largest error. Raises WrongResultError if it is past the limit."""
        errors = errors_beyond_rounding(found, run, self.settings.computed)
        for what, error in errors.items():
            if not error <= self.limit:
                infinite = error == math.inf
                far = "absent, misshapen or infinite," if infinite else f"off by {error:.1e}"
                raise self._wrong(
                    f"{when}: {what} is {far} from the reference form in float64 (limit "
                    f"{self.limit:.0e})"
                )
        return max(errors.values(), default=0.0)

    def _found(self, train: bool) -> Results:
        """The results of the pass that is to be timed."""
        torch.manual_seed(2)
        with self.bound.passes[train].ready() as step:
            output, grads = step() if train else (step(), ())
        results = list(tensors(output))
        if not results:
            raise self._wrong(f"its output {output!r} has no tensor")
        legal = {self.settings.stored, self.settings.computed}
        for i, result in enumerate(results):
            if result.is_floating_point() and result.dtype not in legal:
                raise self._wrong(f"output {i} is {result.dtype}, not {self.settings.stored}")
        return self._named(results, grads, self.bound.block)

    def _reference(self, train: bool, state: dict[str, Tensor]) -> Results:
        """The results of the reference form from the same state, with the same random numbers."""
        self.twin.load_state_dict(state)
        inputs = leaves(self.bound.inputs, torch.float64, "cpu")
        positional, keywords = arguments(self.twin.train(train), inputs)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        with torch.set_grad_enabled(train), reference_forms():
            output = self.twin(*positional, **keywords)
        drawn = not torch.equal(before, torch.get_rng_state())
        if drawn and (self.settings.kind != "cpu" or self.settings.mode == "compiled"):
            raise self._wrong(
                "its training draws random numbers, which can be checked on the CPU in eager mode "
                "alone; build it with dropout=0"
            )
        parts = [t for t in (*tensors(inputs), *self.twin.parameters()) if t.requires_grad]
        weights = [grad.to("cpu", torch.float64) for grad in self.bound.grads]
        grads = gradcheck.derived(output, parts, weights) if train else ()
        return self._named(list(tensors(output)), grads, self.twin)

    def _named(
        self, outputs: list[Tensor], grads: tuple[Tensor | None, ...], block: nn.Module
    ) -> Results:
        """Results by kind and name; copies, if the next call may change them."""
        named = dict(zip(self.bound.wanted, grads, strict=bool(grads)))
        kinds = ("gradient of input", "gradient of the parameter")
        return {
            "output": {f"output {i}": t.clone() for i, t in enumerate(outputs)},
            **{kind: {k: t for k, t in named.items() if k.startswith(kind)} for kind in kinds},
            "buffer": {f"buffer {key}": t.clone() for key, t in block.named_buffers()},
        }

    def _wrong(self, reason: str) -> WrongResultError:
        return WrongResultError(f"{self.name} is not timed: {reason}")
