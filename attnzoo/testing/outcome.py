"""What a check found: yes, no with the cause and the remedy, or not applicable."""

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from . import causes

if TYPE_CHECKING:
    from .subject import Subject

Verdict = Literal["yes", "no", "n/a"]


class FaultError(AssertionError):
    """A check's no: what is wrong, and what to do about it."""

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}: {remedy}" if remedy else cause)
        self.cause, self.remedy = cause, remedy


def require(condition: bool, cause: str) -> None:
    """Raise a FaultError unless the condition holds; `python -O` leaves out assert statements."""
    if not condition:
        raise FaultError(cause)


class NotApplicableError(Exception):
    """The question makes no sense for this module."""


@dataclass(frozen=True)
class Check:
    """One promise of the contract, and the function that holds a module to it.

    The function returns None for yes, or the text of a cell of the capability matrix: a value, or
    one that begins with "n/a: " or "refused: ". It raises an AssertionError for no.
    """

    name: str
    capability: str | None
    meaning: str
    remedy: str
    slow: bool
    run: Callable[..., str | None] = field(repr=False)

    def __call__(self, subject: "Subject", *only: Any) -> str | None:
        """Run it; see the class. `only` limits it to some of its modes, dtypes or kinds."""
        return self.run(subject, *only)


CHECKS: dict[str, Check] = {}  # by name, in the order of the report


def check(
    name: str, *, remedy: str, capability: str | None = None, slow: bool = False
) -> Callable[[Callable[..., str | None]], Check]:
    """A decorator: makes a check of a function of a Subject; its docstring says what yes means."""

    def add(function: Callable[..., str | None]) -> Check:
        meaning = (function.__doc__ or "").split("\n\n")[0].strip().rstrip(".")
        made = Check(name, capability, " ".join(meaning.split()), remedy, slow, function)
        if name in CHECKS:
            raise ValueError(f"two checks are named {name!r}")
        CHECKS[name] = made
        return made

    return add


@dataclass(frozen=True)
class Outcome:
    """The result of one check of one module."""

    check: str
    verdict: Verdict
    text: str = ""  # the cause of a no, the reason of "n/a", or the value that was found
    remedy: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.check}: {self.verdict}{': ' * bool(self.text)}{self.text}{remedy}"


class ContractError(AssertionError):
    """A module breaks the contract; `outcomes` has every check's."""

    def __init__(self, name: str, outcomes: Iterable[Outcome]) -> None:
        self.outcomes = list(outcomes)
        wrong = [outcome for outcome in self.outcomes if outcome.verdict == "no"]
        lines = [f"  {outcome}" for outcome in wrong]
        super().__init__("\n".join([f"{name} fails {len(wrong)} checks:", *lines]))


def perform(one: Check, subject: "Subject") -> Outcome:
    """Run a check and say what it found, whatever it raises."""
    limits = subject.entry.limits if subject.entry is not None else {}
    limit = limits.get(one.capability or "")
    if limit is not None:
        return Outcome(one.name, "n/a", f"a stated limit: {limit}")
    start = time.perf_counter()
    torch.manual_seed(0)
    try:
        outcome = _from_text(one.name, one(subject))
    except NotApplicableError as error:
        outcome = Outcome(one.name, "n/a", str(error))
    except FaultError as error:
        outcome = Outcome(one.name, "no", error.cause, error.remedy or one.remedy)
    except Exception as error:
        cause, remedy = causes.explained(error)
        if subject.entry is None and causes.is_limit_of_torch(error):
            outcome = Outcome(one.name, "n/a", f"torch itself cannot: {cause}")
        else:
            outcome = Outcome(one.name, "no", cause, remedy or one.remedy)
    return Outcome(**{**outcome.to_json(), "seconds": time.perf_counter() - start})


def _from_text(name: str, text: str | None) -> Outcome:
    for prefix in ("n/a: ", "refused: "):
        if text is not None and text.startswith(prefix):
            return Outcome(name, "n/a", text.removeprefix("n/a: "))
    return Outcome(name, "yes", text or "")


def not_applicable(why: str) -> str:
    """What a check returns if its question makes no sense."""
    return f"n/a: {why}"


def refused(error: Exception) -> str:
    """What a check returns if the module refuses a call in words; anything else is raised again.

    A refusal is a ValueError or TypeError that does not come from inside torch.
    """
    if not is_refusal(error):
        raise error
    return f"refused: {error}"


def is_refusal(error: Exception) -> bool:
    """Whether the module itself, not torch, says in words why it does not take a call."""
    frames = traceback.extract_tb(error.__traceback__)
    torch_itself = Path(torch.__file__).parent
    own = not frames or not Path(frames[-1].filename).is_relative_to(torch_itself)
    return own and isinstance(error, (ValueError, TypeError)) and len(str(error)) > 20
