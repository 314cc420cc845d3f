"""The capability matrix as a record: whole, true to its document, and shown to users."""

import pytest

import attnzoo
from attnzoo import capabilities

from matrix import DOCUMENT, Matrix, document, ours

# Cells of new blocks whose slow tests fail or have no outcome yet; an empty set is the aim.
NOT_RECORDED = {
    ("carafe_stack", "inductor"),
    ("implicit", "onnx_dynamic"),
    ("utae_aggregator", "dynamic"),
}


def test_every_cell_is_recorded() -> None:
    recorded = capabilities.recorded()
    assert list(recorded) == [name for name in attnzoo.names() if ours(name)]
    absent = set()
    for block, row in recorded.items():
        assert list(row) == [c for c in capabilities.CAPABILITIES if c in row], block
        absent |= {(block, c) for c in capabilities.CAPABILITIES if c not in row}
    assert absent == NOT_RECORDED


def test_the_document_is_that_of_the_cells() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(capabilities.recorded())


def test_nearly_every_cell_is_green() -> None:
    cells = [text for row in capabilities.recorded().values() for text in row.values()]
    assert sum(text.startswith("no: ") for text in cells) <= 0.02 * len(cells)


def test_a_stated_limit_is_the_recorded_one() -> None:
    for block, row in capabilities.recorded().items():
        for capability, reason in attnzoo.registry.find(block).limits.items():
            assert row[capability] == f"no: {reason}", block


def ran(matrix: Matrix, test: str, outcome: str = "passed", said: str | None = None) -> None:
    said_so = [("cell_key", ("se", "compile")), *([("cell", said)] if said else [])]
    matrix.pytest_runtest_logreport(
        pytest.TestReport(test, ("", 0, ""), {}, outcome, None, "call", user_properties=said_so)  # type: ignore[arg-type]
    )


@pytest.fixture
def matrix() -> Matrix:
    """A session that collected two tests of one cell."""
    session = Matrix(write=False)
    for test in ("a", "b"):
        session.tests["se", "compile"].add(test)
    return session


def test_a_cell_is_yes_when_all_its_tests_passed(matrix: Matrix) -> None:
    ran(matrix, "a")
    assert matrix.cells() == {}
    ran(matrix, "b")
    assert matrix.cells() == {("se", "compile"): "yes"}
    assert matrix.differences() == []


def test_a_cell_that_differs_is_told(matrix: Matrix) -> None:
    ran(matrix, "a", said="no: it was asked not to")
    ran(matrix, "b")
    (line,) = matrix.differences()
    assert line == ("se, compile: the run says 'no: it was asked not to', capabilities.json 'yes'")


def test_neither_a_failure_nor_a_skip_makes_a_cell(matrix: Matrix) -> None:
    ran(matrix, "a")
    ran(matrix, "b", "failed")
    assert matrix.cells() == {}
    assert matrix.problems == []
    ran(matrix, "a", "skipped")
    assert matrix.problems == ["a was skipped; only a limit of the entry excuses"]
