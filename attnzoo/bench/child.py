"""A child Python process that serves requests, one line of JSON for each request and response."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast


class ChildError(RuntimeError):
    """The process ended, or was ended because it did not respond in time."""


class Child:
    """A process that runs `serve`.

    Args:
        command: of the process; its standard error is this one's.
        env: changes to its environment.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
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
            self.close()
            raise ChildError(f"its process ended with status {self.process.returncode}")
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


def row_process(imports: Sequence[str]) -> Child:
    """A process that performs jobs: the request is a job as JSON, the response its row."""
    package = Path(__file__).parents[2]
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = f"from attnzoo.bench.child import serve_rows; serve_rows({list(imports)!r})"
    return Child([sys.executable, "-c", code], {"PYTHONPATH": path})


def serve_rows(imports: Sequence[str]) -> None:
    """What a row process does; what blocks print goes to standard error."""
    from importlib import import_module

    from . import run
    from .job import Job

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in imports:
        import_module(name)
    for line in sys.stdin:
        result = run.perform(Job.from_json(json.loads(line)))
        answers.write(json.dumps(result.to_json()) + "\n")
        answers.flush()
