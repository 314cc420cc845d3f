"""The capability matrix, recorded by the test run: outcomes become cells, cells are held.

A test marked `@pytest.mark.capability("compile")` that runs over the registry (an argument `name`)
fills the cell of its block: "yes" when every test of the cell passes, else what a test recorded
through the fixture `cell`, or the limit that the block's entry states. A stated limit has to be
true: its tests must fail. Cells that differ from `attnzoo/capabilities.json` fail the session;
`pytest --write-capabilities` writes them, and the document made of them.
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
REMEDY = "Where a change is meant, record it: pytest -m '' --write-capabilities FILES"
RECORDED_WITH = (2, 15)  # the torch of the committed cells
NOT_GREEN = ("no: ", "n/a: ", "refused: ")
Key = tuple[str, str]  # block, capability
Cells = dict[str, dict[str, str]]


class Cell:
    """What a capability's test has to say beyond having passed."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    def value(self, text: str) -> None:
        """The cell is this text, a number say, instead of "yes"."""
        self._node.user_properties.append(("cell", text))

    def refused(self, error: Exception) -> None:
        """The block refuses it: the cell is the error's message."""
        assert isinstance(error, (ValueError, TypeError)), error
        assert len(str(error)) > 20, error
        self.value(f"refused: {error}")

    def not_applicable(self, why: str) -> None:
        """The question makes no sense for this block."""
        self.value(f"n/a: {why}")


class Matrix:
    """The plugin: the cells of one session, from the collected tests and their reports.

    With pytest-xdist the workers collect and the controller gets their reports, so that a test's
    key travels in its report and a worker's list of tests in its output.
    """

    def __init__(self, write: bool, worker: bool = False) -> None:
        self.write, self.worker = write, worker
        self.tests: dict[Key, set[str]] = defaultdict(set)
        self.passed: dict[Key, set[str]] = defaultdict(set)
        self.said: dict[Key, set[str]] = defaultdict(set)
        self.failed: set[Key] = set()
        self.problems: list[str] = []

    @pytest.hookimpl(tryfirst=True)  # the half of the suite that is not run counts too
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
            self.problems.append(f"{report.nodeid} was skipped; only a limit of the entry excuses")
        if report.when == "call" and key not in self.failed:
            self.passed[key].add(report.nodeid)
            said = [str(text) for label, text in report.user_properties if label == "cell"]
            self.said[key].update([f"no: {find(key[0]).limits[key[1]]}"] if limited else said)

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
            terminalreporter.section("capabilities of blocks of your own")
            for (block, capability), text in theirs.items():
                terminalreporter.line(f"{block}, {capability}: {text}")
        if self.problems:
            terminalreporter.section("capability matrix", red=True)
            for line in self.problems:
                terminalreporter.line(line)
            terminalreporter.line(REMEDY)

    def cells(self) -> dict[Key, str]:
        """Cells that this run establishes: those whose every test ran, and all that differ."""
        found = {}
        for key, passed in self.passed.items():
            if key not in self.failed and (self.said[key] or passed == self.tests[key]):
                found[key] = "; ".join(sorted(self.said[key])) or "yes"
        return found

    def differences(self) -> list[str]:
        """Cells of the package's blocks that are not as recorded."""
        recorded = capabilities.recorded()
        return [
            f"{block}, {capability}: the run says {text!r}, {capabilities.PATH.name} "
            f"{recorded.get(block, {}).get(capability, 'nothing')!r}"
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
    """Numbers are those of the torch that recorded them; with an older one they may differ."""
    older = torch.__version__ < RECORDED_WITH
    numbers = all(text is not None and text[:1].isdigit() for text in (recorded, found))
    return recorded == found or (older and numbers)


def key_of(item: pytest.Item) -> Key | None:
    """Block and capability of a test; None where it has no such mark."""
    mark = item.get_closest_marker("capability")
    if mark is None:
        return None
    (capability,) = mark.args
    if capability not in capabilities.CAPABILITIES:
        raise pytest.UsageError(f"{item.nodeid}: {capability!r} is not in attnzoo/capabilities.py")
    return item.callspec.params["name"], capability  # type: ignore[attr-defined]


def ours(block: str) -> bool:
    """Whether a block is the package's own; others get the same tests and no row in the file."""
    return find(block).cls.__module__.startswith("attnzoo.")


def document(cells: Cells) -> str:
    """docs/capabilities.md."""
    everything = [text for row in cells.values() for text in row.values()]
    green = sum(not text.startswith(NOT_GREEN) for text in everything)
    parts = [
        "# What works\n",
        "Written by the test run (`pytest -m '' --write-capabilities`), never by hand; every run "
        "of the suite\nholds each cell it meets to this table. `attnzoo show NAME` prints one "
        "block's cells.\n",
        f"{green} of {len(everything)} cells are green ({green / max(1, len(everything)):.1%}); "
        "the others are explained below the\ntables. A number is the largest that was found to "
        "work.\n",
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
    return "\n".join([*parts, "## What does not, and why\n", "".join(notes) or "Nothing.\n"])


def _table(cells: Cells, columns: Iterable[str]) -> list[str]:
    columns = list(columns)
    lines = [f"| block | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for block, row in cells.items():
        shown = (row.get(column, capabilities.NOT_TESTED).split(": ")[0] for column in columns)
        lines.append(f"| `{block}` | {' | '.join(shown)} |")
    return [*lines, ""]
