"""Holds a module to the contract in this process, or makes a pytest test that does."""

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import Inputs, build, find, names
from ..validation import messages
from .inputs import tensors
from .outcome import CHECKS, Check, ContractError, Outcome, perform
from .subject import Copies, Subject, registered, subject_of


def check_module(
    module: nn.Module,
    inputs: Any,
    *,
    checks: Collection[str] | None = None,
    skip: Collection[str] = (),
    fast: bool = True,
    name: str = "",
) -> list[Outcome]:
    """Hold any module to the contract.

    Args:
        module: the module; it is copied, and left as it is.
        inputs: of a forward call: a tensor, a list that is one argument, a tuple of arguments, or
            a dict of arguments by name.
        checks: the names of those to run; default: all, or the quick ones.
        skip: names of those to leave out.
        fast: leave out what takes more than a few seconds: inductor, export, ONNX.
        name: what messages call the module; default: its class.

    Returns the outcome of every check. Raises ContractError, which names everything that failed,
    each with its cause and its remedy.
    """
    copies = Copies(module)
    subject = subject_of(module, named(module, inputs), name or type(module).__name__)
    try:
        outcomes = outcomes_of(subject, chosen(checks, skip, fast))
    finally:
        copies.restore()
    if any(outcome.verdict == "no" for outcome in outcomes):
        raise ContractError(subject.name, outcomes)
    return outcomes


def outcomes_of(subject: Subject, checks: Iterable[Check]) -> list[Outcome]:
    """What every check says of a subject; if its example does not run, that alone."""
    found: list[Outcome] = []
    for one in checks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a user's module may warn, and so may compilers
            found.append(perform(one, subject))
        if one.name == "runs" and found[-1].verdict == "no":
            break
    return found


def chosen(
    checks: Collection[str] | None = None, skip: Collection[str] = (), fast: bool = False
) -> list[Check]:
    """The checks of these names, in the order of the report. Raises ValueError on unknown ones."""
    from . import checks as _all_of_them  # noqa: F401  # fills CHECKS

    for name in (*(checks or ()), *skip):
        if name not in CHECKS:
            near = messages.nearest(name, CHECKS)
            raise ValueError(f"no check is named {name!r}{near}; they are {', '.join(CHECKS)}")
    wanted = [
        one
        for one in CHECKS.values()
        if (one.name in checks if checks is not None else not (fast and one.slow))
        and one.name not in skip
    ]
    return sorted(wanted, key=lambda one: (one.name != "runs", one.slow))


def named(module: nn.Module, inputs: Any) -> Inputs:
    """Inputs by the names of forward's arguments, in their order."""
    parameters = inspect.signature(module.forward).parameters
    if isinstance(inputs, Mapping):
        order = {key: place for place, key in enumerate(parameters)}
        return dict(sorted(inputs.items(), key=lambda item: order.get(item[0], len(order))))
    values = inputs if isinstance(inputs, tuple) else (inputs,)
    keys = [key for key, p in parameters.items() if p.kind is not p.VAR_POSITIONAL]
    keys += [f"argument {i}" for i in range(len(keys), len(values))]
    found = dict(zip(keys, values, strict=False))
    if next(tensors(found), None) is None:
        raise TypeError(f"inputs={messages.shown(inputs)} must hold a tensor at least")
    return found


def suite(
    target: str | type[nn.Module] | Callable[..., nn.Module],
    *,
    example: Any = None,
    checks: Collection[str] | None = None,
    skip: Collection[str] = (),
    fast: bool = True,
    **config: Any,
) -> Callable[..., None]:
    """A pytest test of every check: `test_mine = attnzoo.testing.suite(MyAttention, c=64)`.

    Args:
        target: a class or a function that returns the module, or the name of a registered block.
        example: inputs of a call, or a shape such as `"2x64x14x14"`, or a function that makes
            them; default: those of the registered block, or of the first layout that runs.
        checks, skip, fast: as `check_module` takes them.
        **config: the arguments of the constructor.
    """
    import pytest

    which = chosen(checks, skip, fast)

    @pytest.mark.parametrize("check", [one.name for one in which])
    def test(check: str) -> None:
        outcome = outcomes_of(subject_from(target, config, example), [CHECKS[check]])[0]
        if outcome.verdict == "no":
            raise ContractError(getattr(target, "__name__", str(target)), [outcome])
        if outcome.verdict == "n/a":
            pytest.skip(outcome.text)

    return test


def subject_from(
    target: str | Callable[..., nn.Module],
    config: Mapping[str, Any],
    example: Any = None,
    **known: Any,
) -> Subject:
    """The subject of a class, a function or a registered name, with a config and an example."""
    entry_name = target if isinstance(target, str) else _registered_name(target)
    if entry_name is not None and example is None:
        return registered(entry_name, **config)

    def make() -> nn.Module:
        made = build(target, **config) if isinstance(target, str) else target(**config)
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"{messages.shown(target)} returns {messages.shown(made)}, no nn.Module"
            )
        return made

    module = make().eval()
    inputs = guessed(module, config) if example is None else _example(example)
    name = str(entry_name or getattr(target, "__name__", type(module).__name__))
    return subject_of(make, named(module, inputs), name, config=dict(config), **known)


def _registered_name(target: Any) -> str | None:
    return next((name for name in names() if find(name).cls is target), None)


def _example(example: Any) -> Any:
    if isinstance(example, str):
        return shaped(example)
    return example() if callable(example) else example


def shaped(text: str) -> Any:
    """Normal random inputs of shapes as text: "2x64x14x14", or several with commas."""
    shapes = []
    for part in text.split(","):
        sizes = part.strip().split("x")
        if not all(size.isdigit() for size in sizes):
            raise ValueError(f"{text!r} must be sizes such as 2x64x14x14, several with commas")
        shapes.append([int(size) for size in sizes])
    generator = torch.Generator().manual_seed(0)
    made = tuple(torch.randn(shape, generator=generator) for shape in shapes)
    return made if len(made) > 1 else made[0]


def guessed(module: nn.Module, config: Mapping[str, Any]) -> Tensor:
    """An image, a sequence, a vector or a series: the first that the module takes.

    Raises ValueError if it takes none of them.
    """
    for shape in _likely_shapes(config):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad():
                found = module(x)
        except Exception:
            continue
        if next(tensors(found), None) is not None:
            return x
    raise ValueError(
        f"{type(module).__name__} takes none of the usual inputs; say which with "
        "example= (--example 2x64x14x14 on the command line)"
    )


def _likely_shapes(config: Mapping[str, Any]) -> list[Sequence[int]]:
    numbers = [v for v in config.values() if isinstance(v, int) and not isinstance(v, bool)]
    widths = [*numbers[:1], 64, 32, 16, 8, 3]
    shapes: list[Sequence[int]] = []
    for c in dict.fromkeys(widths):
        shapes += [(2, c, 14, 14), (2, 24, c), (2, c), (2, 5, c, 14, 14)]
    return shapes
