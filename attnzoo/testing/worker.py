"""Runs checks in a process of their own: one that hangs or dies is stopped, the others go on."""

import faulthandler
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

from .outcome import Outcome
from .process import Child, ChildError, python_process
from .targets import Spec

STARTUP = 120.0  # seconds for importing torch and the target


@dataclass
class Runner:
    """Checks a target in another process, which is started again after it had to be stopped.

    Args:
        spec: the target.
        checks: names of the checks.
        timeout: seconds a check may take.
    """

    spec: Spec
    checks: Sequence[str]
    timeout: float = 60.0
    _child: Child | None = field(default=None, init=False)
    _errors: IO[bytes] = field(init=False)  # what the process writes to standard error

    def __post_init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # it is open as long as this

    def subjects(self) -> list[str]:
        """Names of what the target has. Raises ValueError if the target is unusable."""
        try:
            answer = self._start()
        except ChildError as error:
            raise ValueError(
                f"{self.spec['target']} cannot be loaded: {error}{self._last_words()}"
            ) from None
        return [str(name) for name in answer["subjects"]]

    def run(
        self, subject: int, progress: Callable[[str], None] = lambda name: None
    ) -> Iterator[Outcome]:
        """The outcome of every check; if the example does not run, that alone."""
        for name in self.checks:
            progress(name)
            outcome = self.perform(subject, name)
            yield outcome
            if name == "runs" and outcome.verdict == "no":
                return

    def close(self) -> None:
        """End the process; nothing can be asked afterwards."""
        self._stop()
        self._errors.close()

    def _stop(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child = None

    def _start(self) -> dict[str, Any]:
        code = "from attnzoo.testing.worker import serve_checks; serve_checks()"
        self._child = python_process(code, self._errors)
        answer = self._child.ask({"spec": self.spec}, STARTUP)
        if answer.get("error"):
            self._stop()
            raise ValueError(answer["error"])
        return answer

    def perform(self, subject: int, name: str) -> Outcome:
        """One check, whatever it does to the process."""
        try:
            if self._child is None:
                self._start()
            child = cast(Child, self._child)
            return Outcome(**child.ask({"subject": subject, "check": name}, self.timeout))
        except ChildError as error:
            self._child = None
            hangs = "no answer" in str(error)
            what = f"it hangs: {error}" if hangs else f"it dies in native code: {error}"
            remedy = (
                "look for a loop that does not end, or a deadlock; --timeout gives it longer"
                if hangs
                else "look at the last call of the module into an extension or a custom operator"
            )
            return Outcome(name, "no", what + self._last_words(), remedy)

    def _last_words(self) -> str:
        """The place that the process was at when it died, as faulthandler says it."""
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 20_000))
        lines = self._errors.read().decode(errors="replace").splitlines()
        last = [i for i, line in enumerate(lines) if "most recent call first" in line]
        frames = [line.strip() for line in lines[last[-1] + 1 :]] if last else []
        own = [f for f in frames if f.startswith("File") and "/torch/" not in f]
        return f" ({own[0]})" if own else ""


def serve_checks() -> None:
    """What the process does: loads the target, then runs the checks it is asked for."""
    import warnings

    from . import checks as _all_of_them  # noqa: F401  # fills CHECKS
    from .api import outcomes_of
    from .outcome import CHECKS
    from .process import serve
    from .targets import subjects

    faulthandler.enable()
    warnings.simplefilter("ignore")
    loaded: list[Any] = []

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if "spec" in question:
            try:
                loaded[:] = subjects(question["spec"])
            except Exception as error:
                return {"error": str(error) or type(error).__name__}
            return {"subjects": [subject.name for subject in loaded]}
        subject = loaded[question["subject"]]
        return outcomes_of(subject, [CHECKS[question["check"]]])[0].to_json()

    serve(answer)


def as_json(text: str) -> dict[str, Any]:
    """A config from the command line. Raises ValueError if it is no JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"--config {text} must be a JSON object, such as '{{\"c\": 64}}'")
    return value
