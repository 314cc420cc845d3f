"""Checks under compilers: no break, one compilation for all sizes, eager's numbers."""

import copy
import warnings
from collections.abc import Sequence

import torch

from ... import _torch
from ...registry import InputSize
from ..closeness import assert_close
from ..outcome import check, not_applicable
from ..step import call_like, step
from ..subject import ODD, Subject
from .calls import BOTH

REMEDY = "stay in tensors: no .item(), no print, no branch on values, no Python state in forward"


@check("compile", capability="compile", remedy=REMEDY)
def compiles(subject: Subject, modes: Sequence[bool] = BOTH) -> str | None:
    """torch.compile(fullgraph=True) trains as eager does, in both modes (aot_eager)"""
    for train in modes:
        module, inputs = subject.made(train=train)
        state = copy.deepcopy(module.state_dict())
        torch.manual_seed(3)
        wanted = step(module, inputs)
        module.load_state_dict(state)
        torch.compiler.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.manual_seed(3)
        found = step(module, inputs, lambda p, m=module, c=compiled: call_like(m, c, p))  # type: ignore[misc]
        assert_close(found, wanted)
    return None


SHAPES = (
    ODD,
    InputSize(batch=2, steps=24, height=14, width=16),
    InputSize(batch=5, steps=24, height=14, width=16),  # another batch alone
    InputSize(batch=5, steps=17, height=8, width=8),  # another size alone
)


@check("dynamic", capability="dynamic", remedy=REMEDY, slow=True)
def dynamic(subject: Subject, kinds: Sequence[bool | None] = (True, None)) -> str | None:
    """the same without recompilation when only the batch or the size changes"""
    if not subject.registered and subject.inputs(SHAPES[0]).keys() and not _varies(subject):
        return not_applicable("the module does not run at other sizes; see sizes")
    for kind in kinds:
        with _torch.no_duck_shapes():  # sizes that are equal at first may differ later
            _compiled_once(subject, kind)
    return None


def _varies(subject: Subject) -> bool:
    """Whether a module that nobody registered runs at all these sizes."""
    module = subject.module(torch.float64)
    try:
        for size in SHAPES:
            step(module, subject.inputs(size, torch.float64))
    except Exception:
        return False
    return True


def _compiled_once(subject: Subject, kind: bool | None) -> None:
    """Told that sizes vary: one compilation; left to find out: one more, for the second size."""
    # A bias in front of train-mode BatchNorm has no gradient but rounding: float64 has less of it.
    module = subject.module(torch.float64, train=kind is True)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=kind, backend="aot_eager")
    for count, size in enumerate(SHAPES):
        inputs = subject.inputs(size, torch.float64)
        torch.manual_seed(3)
        wanted = step(module, inputs)
        known = count >= (1 if kind else 2)
        torch.manual_seed(3)
        with torch.compiler.set_stance("fail_on_recompile" if known else "default"):
            found = step(module, inputs, lambda points: call_like(module, compiled, points))
        assert_close(found, wanted)


@check("inductor", capability="inductor", remedy=REMEDY, slow=True)
def inductor(subject: Subject) -> str | None:
    """torch.compile(fullgraph=True) with the default compiler trains as eager does"""
    module, inputs = subject.made()
    wanted = step(module, inputs)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own advice and deprecations
        try:
            found = step(module, inputs, lambda points: call_like(module, compiled, points))
        except Exception as error:
            if subject.registered or "compiler" not in str(error).lower():
                raise
            return not_applicable("inductor finds no C++ compiler here")
    assert_close(found, wanted)
    return None
