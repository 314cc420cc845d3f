"""The capability matrix: a pytest plugin that turns test outcomes into cells and compares them.

A test marked `@pytest.mark.capability("compile")`, with the block's name as its argument `name`,
determines the cell of that block: "yes" if every test of the cell passes, or the text that a test
records through the fixture `cell`, or the limit that the block's entry states. A stated limit must
be true: its tests must fail. If a cell differs from `attnzoo/capabilities.json`, the session fails;
`pytest --write-capabilities` writes the file and docs/capabilities.md instead.
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

import attnzoo
from attnzoo import capabilities
from attnzoo.registry import find

DOCUMENT = Path(__file__).parent.parent / "docs" / "capabilities.md"
REMEDY = "If a change is intended, record it: pytest -m '' --write-capabilities FILES"
RECORDED_WITH = (2, 15)  # the torch version of the committed cells
NOT_GREEN = ("no: ", "n/a: ", "refused: ")
Key = tuple[str, str]  # block, capability
Cells = dict[str, dict[str, str]]


class Cell:
    """Lets a test of a capability record a text instead of "yes"."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    def value(self, text: str) -> None:
        """Record this text, such as a number."""
        self._node.user_properties.append(("cell", text))

    def record(self, text: str | None) -> None:
        """Record what a check of `attnzoo.testing` returned; None stands for "yes"."""
        if text is not None:
            self.value(text)

    def refused(self, error: Exception) -> None:
        """Record that the block refuses the input, with the error's message."""
        assert isinstance(error, (ValueError, TypeError)), error
        assert len(str(error)) > 20, error
        self.value(f"refused: {error}")

    def not_applicable(self, why: str) -> None:
        """Record that the capability does not apply to this block."""
        self.value(f"n/a: {why}")


class Matrix:
    """The plugin: computes the cells of one session from the collected tests and their reports.

    With pytest-xdist the workers collect and the controller receives their reports. Therefore each
    report contains the key of its test, and each worker's output the list of its tests.
    """

    def __init__(self, write: bool, worker: bool = False) -> None:
        self.write, self.worker = write, worker
        self.tests: dict[Key, set[str]] = defaultdict(set)
        self.passed: dict[Key, set[str]] = defaultdict(set)
        self.texts: dict[Key, set[str]] = defaultdict(set)
        self.failed: set[Key] = set()
        self.problems: list[str] = []

    @pytest.hookimpl(tryfirst=True)  # before tests are deselected: those count, too
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            key = key_of(item)
            if key is None:
                continue
            self.tests[key].add(item.nodeid)
            item.user_properties.append(("cell_key", key))
            limit = find(key[0]).limits.get(key[1])
            if limit is not None:
                item.add_marker(pytest.mark.xfail(reason=f"{key[0]}: {limit}", strict=True))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = [tuple(text) for label, text in report.user_properties if label == "cell_key"]
        if not found or self.worker:
            return
        key = found[0]
        limited = hasattr(report, "wasxfail")
        if report.failed or (report.skipped and not limited):
            self.failed.add(key)
        if report.skipped and not limited:
            self.problems.append(
                f"{report.nodeid} was skipped; only a limit in the entry allows that"
            )
        if report.when == "call" and key not in self.failed:
            self.passed[key].add(report.nodeid)
            texts = [str(text) for label, text in report.user_properties if label == "cell"]
            self.texts[key].update([f"no: {find(key[0]).limits[key[1]]}"] if limited else texts)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for block, capability, tests in getattr(node, "workeroutput", {}).get("cells", []):
            self.tests[block, capability].update(tests)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.worker:
            cells = [(*key, sorted(tests)) for key, tests in self.tests.items()]
            session.config.workeroutput["cells"] = cells  # type: ignore[attr-defined]
            return
        if self.write:
            self.record()
        self.problems += self.differences()
        if self.problems and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        theirs = {key: text for key, text in sorted(self.cells().items()) if not ours(key[0])}
        if theirs:
            terminalreporter.section("capabilities of your own blocks")
            for (block, capability), text in theirs.items():
                terminalreporter.line(f"{block}, {capability}: {text}")
        if self.problems:
            terminalreporter.section("capability matrix", red=True)
            for line in self.problems:
                terminalreporter.line(line)
            terminalreporter.line(REMEDY)

    def cells(self) -> dict[Key, str]:
        """Cells that this run determines: those whose tests all passed, or that recorded a text."""
        found = {}
        for key, passed in self.passed.items():
            if key not in self.failed and (self.texts[key] or passed == self.tests[key]):
                found[key] = "; ".join(sorted(self.texts[key])) or "yes"
        return found

    def differences(self) -> list[str]:
        """Cells of the package's blocks that are not as recorded."""
        recorded = capabilities.recorded()
        return [
            f"{block}, {capability}: {text!r} in this run, "
            f"{recorded.get(block, {}).get(capability, 'nothing')!r} in {capabilities.PATH.name}"
            for (block, capability), text in sorted(self.cells().items())
            if ours(block) and not _agree(recorded.get(block, {}).get(capability), text)
        ]

    def record(self) -> None:
        """Merge this run's cells of the package's blocks into the file and the document."""
        cells = {block: {} for block in attnzoo.names() if ours(block)} | capabilities.recorded()
        for (block, capability), text in self.cells().items():
            if ours(block):
                cells[block][capability] = text
        kept = {
            block: {c: cells[block][c] for c in capabilities.CAPABILITIES if c in cells[block]}
            for block in sorted(cells)
            if block in attnzoo.names()
        }
        capabilities.PATH.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        DOCUMENT.write_text(document(kept), encoding="utf-8")


def _agree(recorded: str | None, found: str) -> bool:
    """Whether two cells are equal; numbers may differ with a torch older than the recorded one."""
    older = torch.__version__ < RECORDED_WITH
    numbers = all(text is not None and text[:1].isdigit() for text in (recorded, found))
    return recorded == found or (older and numbers)


def key_of(item: pytest.Item) -> Key | None:
    """Block and capability of a test, or None if it is not marked."""
    mark = item.get_closest_marker("capability")
    if mark is None:
        return None
    (capability,) = mark.args
    if capability not in capabilities.CAPABILITIES:
        raise pytest.UsageError(f"{item.nodeid}: {capability!r} is not in attnzoo/capabilities.py")
    return item.callspec.params["name"], capability  # type: ignore[attr-defined]


def ours(block: str) -> bool:
    """Whether a block is part of the package; others are tested, too, but not recorded."""
    return find(block).cls.__module__.startswith("attnzoo.")


def document(cells: Cells) -> str:
    """The text of docs/capabilities.md."""
    everything = [text for row in cells.values() for text in row.values()]
    green = sum(not text.startswith(NOT_GREEN) for text in everything)
    parts = [
        "# What works\n",
        "This page is written by the tests (`pytest -m '' --write-capabilities`), never by hand. A "
        "test run fails\nif one of its results differs from these tables. `attnzoo show NAME` "
        "prints the row of one block.\n",
        f'{green} of {len(everything)} cells are "yes" or a number '
        f"({green / max(1, len(everything)):.1%}); the others are explained at the end. A number\n"
        'is the largest value that works. The meaning of "yes" is given below each table.\n',
    ]
    for group, meanings in capabilities.GROUPS.items():
        parts += [f"## {group}\n", *_table(cells, list(meanings))]
        parts += ["".join(f"- `{name}`: {meaning}\n" for name, meaning in meanings.items())]
    notes = [
        f"- `{block}`, {capability}: {text}\n"
        for block, row in cells.items()
        for capability, text in row.items()
        if text.startswith(NOT_GREEN)
    ]
    return "\n".join([*parts, "## What does not work, and why\n", "".join(notes) or "Nothing.\n"])


def _table(cells: Cells, columns: Iterable[str]) -> list[str]:
    columns = list(columns)
    lines = [f"| block | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for block, row in cells.items():
        shown = (row.get(column, capabilities.NOT_TESTED).split(": ")[0] for column in columns)
        lines.append(f"| `{block}` | {' | '.join(shown)} |")
    return [*lines, ""]
