"""What the tests of the delivery share."""

from __future__ import annotations

import pytest

from cio_pipeline_tests.customerio.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Waits between requests take no time, and are noted."""
    return Clock(monkeypatch)
