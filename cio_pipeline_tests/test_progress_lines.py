"""How far a step has come is said in the log, over all threads."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cio_pipeline import progress


def test_a_step_says_how_far_it_is_while_it_runs_and_what_it_did_at_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.05)
    with caplog.at_level("INFO", logger="cio_pipeline"), progress.Progress("2026-03-02", "events delivered", 3000) as so_far:
        with ThreadPoolExecutor(4) as threads:
            for _ in range(1000):
                threads.submit(so_far.add, 2)
        while not caplog.messages:
            time.sleep(0.01)
    assert len(caplog.messages) > 1
    assert caplog.messages[-1].startswith("2026-03-02: 2,000 of 3,000 events delivered")


def test_a_step_that_fails_says_nothing_of_its_end(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level("INFO", logger="cio_pipeline"),
        pytest.raises(ValueError, match="a fault"),
        progress.Progress("a", "b", None),
    ):
        raise ValueError("a fault")
    assert caplog.messages == []
