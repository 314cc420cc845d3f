"""The capability matrix as a record: whole, true to its document, and shown to users."""

import pytest

import attnzoo
from attnzoo import capabilities

from matrix import DOCUMENT, document, ours


def test_every_cell_is_recorded() -> None:
    recorded = capabilities.recorded()
    assert list(recorded) == [name for name in attnzoo.names() if ours(name)]
    for block, row in recorded.items():
        assert list(row) == list(capabilities.CAPABILITIES), block


def test_the_document_is_that_of_the_cells() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(capabilities.recorded())


def test_nearly_every_cell_is_green() -> None:
    cells = [text for row in capabilities.recorded().values() for text in row.values()]
    assert sum(text.startswith("no: ") for text in cells) <= 0.02 * len(cells)


@pytest.mark.every_block
def test_a_stated_limit_is_the_recorded_one(name: str) -> None:
    row = capabilities.recorded()[name]
    for capability, reason in attnzoo.registry.find(name).limits.items():
        assert row[capability] == f"no: {reason}"
