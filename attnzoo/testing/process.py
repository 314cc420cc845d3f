"""A child Python process that serves requests, one line of JSON for each request and response."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast


class ChildError(RuntimeError):
    """The process ended, or was ended because it did not respond in time."""


class Child:
    """A process that runs `serve`.

    Args:
        command: of the process.
        env: changes to its environment.
        errors: the file that gets its standard error; default: this process's own.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        errors: IO[Any] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(env or {})},
            text=True,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, question: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Send a request and return the response; without one, end the process: ChildError."""
        questions = cast(IO[str], self.process.stdin)
        try:
            questions.write(json.dumps(question) + "\n")
            questions.flush()
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            self.close()
            raise ChildError(f"no answer within {timeout:g} seconds") from None
        except BrokenPipeError:
            answer = None
        if answer is None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # its own ending, if it has one
                self.process.wait(5)
            self.close()
            raise ChildError(f"its process ended with {_ending(self.process.returncode)}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # a question that it never read
                    pipe.close()

    def _read(self) -> None:
        try:
            for line in cast(IO[str], self.process.stdout):
                self._answers.put(line)
        except ValueError:  # closed meanwhile
            pass
        self._answers.put(None)


def _ending(status: int) -> str:
    """`status 1`, or `signal SIGSEGV`."""
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"


def python_process(code: str, errors: IO[Any] | None = None) -> Child:
    """A Python process that runs `code`, with this package, whatever its working directory."""
    package = Path(__file__).parents[2]
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(package)])
    return Child([sys.executable, "-c", code], {"PYTHONPATH": path}, errors)


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until standard input ends; what modules print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(handle(json.loads(line))) + "\n")
        answers.flush()
