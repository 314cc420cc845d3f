"""The recorded capability matrix: it is complete, and its document and limits agree with it."""

import pytest

import attnzoo
from attnzoo import capabilities

from matrix import DOCUMENT, Matrix, document, ours

# Cells of new blocks whose slow tests fail or have not been run yet; it should be empty.
SLOW = ("dynamic", "export", "inductor", "onnx", "onnx_dynamic")
NEW = ("adcd_net", "paps", "segearth_ov", "utae")
NOT_RECORDED = {(name, cell) for name in NEW for cell in SLOW}


def test_every_cell_is_recorded() -> None:
    recorded = capabilities.recorded()
    assert list(recorded) == [name for name in attnzoo.names() if ours(name)]
    absent = set()
    for block, row in recorded.items():
        assert list(row) == [c for c in capabilities.CAPABILITIES if c in row], block
        absent |= {(block, c) for c in capabilities.CAPABILITIES if c not in row}
    assert absent == NOT_RECORDED


def test_the_document_shows_the_recorded_cells() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(capabilities.recorded())


def test_at_most_two_percent_of_cells_are_no() -> None:
    cells = [text for row in capabilities.recorded().values() for text in row.values()]
    assert sum(text.startswith("no: ") for text in cells) <= 0.02 * len(cells)


def test_the_limits_of_entries_are_recorded() -> None:
    for block, row in capabilities.recorded().items():
        for capability, reason in attnzoo.registry.find(block).limits.items():
            assert row[capability] == f"no: {reason}", block


def report(matrix: Matrix, test: str, outcome: str = "passed", text: str | None = None) -> None:
    """Tell the plugin the outcome of a test, and the text that the test recorded."""
    properties = [("cell_key", ("se", "compile")), *([("cell", text)] if text else [])]
    matrix.pytest_runtest_logreport(
        pytest.TestReport(test, ("", 0, ""), {}, outcome, None, "call", user_properties=properties)  # type: ignore[arg-type]
    )


@pytest.fixture
def matrix() -> Matrix:
    """A session that collected two tests of one cell."""
    session = Matrix(write=False)
    for test in ("a", "b"):
        session.tests["se", "compile"].add(test)
    return session


def test_a_cell_is_yes_when_all_its_tests_passed(matrix: Matrix) -> None:
    report(matrix, "a")
    assert matrix.cells() == {}
    report(matrix, "b")
    assert matrix.cells() == {("se", "compile"): "yes"}
    assert matrix.differences() == []


def test_a_differing_cell_is_reported(matrix: Matrix) -> None:
    report(matrix, "a", text="no: it fails")
    report(matrix, "b")
    (line,) = matrix.differences()
    assert line == "se, compile: 'no: it fails' in this run, 'yes' in capabilities.json"


def test_failed_and_skipped_tests_determine_no_cell(matrix: Matrix) -> None:
    report(matrix, "a")
    report(matrix, "b", "failed")
    assert matrix.cells() == {}
    assert matrix.problems == []
    report(matrix, "a", "skipped")
    assert matrix.problems == ["a was skipped; only a limit in the entry allows that"]
