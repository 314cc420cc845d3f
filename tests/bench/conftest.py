"""What every test of the harness shares: small roofs, and little patience with a busy machine."""

import pytest

from attnzoo.bench.timing import clock, roofline


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roofs of small operators, and no waiting for an idle machine."""
    monkeypatch.setattr(roofline, "FOOTPRINTS", (2**15,))
    monkeypatch.setattr(roofline, "SIDES", (64,))
    monkeypatch.setattr(roofline, "SECONDS", 0.001)
    monkeypatch.setattr(clock, "MAX_OVERTIME", 4)
