"""A long step shows its progress: in log lines, or in a terminal with a bar."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from cio_pipeline import progress
from cio_pipeline.progress import Progress


def test_a_long_step_is_logged_regularly_even_without_progress(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.02)
    with Progress("2026-03-02", "events read", 3000) as step:
        step.add(1000)
        deadline = time.monotonic() + 10
        while len(caplog.messages) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert set(caplog.messages[:3]) == {"2026-03-02: 1,000 of 3,000 events read."}


def test_the_last_line_has_the_count_the_total_and_the_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("cio_pipeline.progress.time.monotonic", lambda: next(clock))
    with Progress("2026-03-02", "events read", 3000) as step:
        assert len(list(step.rows_of([pd.DataFrame(index=range(1000))] * 3))) == 3
    assert caplog.messages == ["2026-03-02: 3,000 of 3,000 events read, 300 a second."]


def test_without_a_total_only_the_count_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with Progress("2026-03-02", "events listed", None) as step:
        step.add(12)
    assert caplog.messages == ["2026-03-02: 12 events listed."]


def test_the_count_is_the_sum_of_all_threads(caplog: pytest.LogCaptureFixture) -> None:
    with Progress("2026-03-02", "events delivered", 3000) as step, ThreadPoolExecutor(4) as threads:
        for _ in range(1000):
            threads.submit(step.add, 2)
    assert caplog.messages[-1].startswith("2026-03-02: 2,000 of 3,000 events delivered")


def test_a_failed_step_has_no_last_line(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="no"), Progress("2026-03-02", "events read", 3000):
        raise ValueError("no")
    assert caplog.messages == []


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "with_bars", True)
    with Progress("2026-03-02", "events read", 3000) as step:
        step.add(3000)
    assert "2026-03-02: 100%" in capsys.readouterr().err
