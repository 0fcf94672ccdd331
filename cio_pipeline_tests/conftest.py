"""What several tests share: settings that name nothing real, and the sandbox in process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cio_pipeline.sandbox import customerio


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see no setting of the machine they run on."""
    for name in list(os.environ):
        if name.startswith(("CIO_", "CUSTOMERIO_", "POSTHOG_", "DAGSTER_")):
            monkeypatch.delenv(name)


@pytest.fixture
def workspace() -> Iterator[customerio.CustomerioServer]:
    """A local Customer.io."""
    with customerio.serve() as server:
        yield server
