"""A clock whose waits take no time: each moves it on."""

from __future__ import annotations

import threading

import pytest

from cio_pipeline.customerio import rate_limit as pace


class Clock:
    """The time of every `Pace`, and how long each rest after a failure was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.rests, self._lock = 0.0, list[float](), threading.Lock()
        rest = pace.Pace.rest

        def noted(paced: pace.Pace, seconds: float, everybody: bool) -> None:
            self.rests.append(seconds)
            rest(paced, seconds, everybody)

        def moved_on(paced: pace.Pace, seconds: float) -> None:
            if paced._stopped.is_set():
                raise pace.Stopped
            with self._lock:
                self.now += seconds

        monkeypatch.setattr(pace, "monotonic", lambda: self.now)
        monkeypatch.setattr(pace.Pace, "rest", noted)
        monkeypatch.setattr(pace.Pace, "_pause", moved_on)
