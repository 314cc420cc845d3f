"""The pytest plugin: a test for every check of every target; see docs/checking.md."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from .api import chosen
from .outcome import Check, ContractError, Outcome
from .targets import Spec
from .worker import Runner, as_json

# What a whole network is held to: it is too large to be differentiated number by number.
OF_NETWORKS = (
    *("runs", "dtype", "gradients", "batch", "isolation", "untouched", "modes", "seed"),
    *("registered", "tied", "copy", "pickle", "state_dict", "compile"),
)


class Contract:
    """Adds the tests to the session, which runs nothing else unless it names tests, too."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.runners: list[Runner] = []
        if config.args_source is not pytest.Config.ArgsSource.ARGS:
            config.args = []

    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        """Append a test for every check of every subject."""
        items.extend(self._tests(session))

    def pytest_sessionfinish(self) -> None:
        """End the processes."""
        for runner in self.runners:
            runner.close()

    def _tests(self, session: pytest.Session) -> Iterator[pytest.Item]:
        ask = self.config.getoption
        for target in ask("--attnzoo"):
            yield from self._of(session, target, chosen(fast=not ask("--attnzoo-all")))
        for target in ask("--attnzoo-model"):
            yield from self._of(session, target, chosen(OF_NETWORKS))

    def _of(
        self, session: pytest.Session, target: str, checks: list[Check]
    ) -> Iterator[pytest.Item]:
        try:
            spec = Spec(
                target=target,
                config=as_json(self.config.getoption("--attnzoo-config")),
                example=self.config.getoption("--attnzoo-example"),
            )
            runner = Runner(spec, [one.name for one in checks])
            self.runners.append(runner)
            subjects = runner.subjects()
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        for index, subject in enumerate(subjects):
            for one in checks:
                perform = functools.partial(runner.perform, index, one.name)
                yield CheckItem.from_parent(
                    session, name=f"{subject}[{one.name}]", subject=subject, perform=perform
                )


class CheckItem(pytest.Item):
    """One check of one subject."""

    def __init__(self, *, subject: str, perform: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.subject, self.perform = subject, perform

    def runtest(self) -> None:
        """Run the check in its process."""
        outcome: Outcome = self.perform()
        if outcome.verdict == "no":
            raise ContractError(self.subject, [outcome])
        if outcome.verdict == "n/a":
            pytest.skip(outcome.text)

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The cause and the remedy, without a traceback through this package."""
        if isinstance(excinfo.value, ContractError):
            (outcome,) = excinfo.value.outcomes
            return f"{outcome.check}: {outcome.text}\n    {outcome.remedy}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """The place and the name that reports show."""
        return self.path, None, self.name
