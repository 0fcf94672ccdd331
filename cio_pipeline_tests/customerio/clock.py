"""A clock whose waits take no time: each moves it on."""

from __future__ import annotations

import threading

import pytest

from cio_pipeline.customerio import rate_limit


class Clock:
    """The time of every `RateLimit`, and how long each rest after a failure was."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.rests, self._lock = 0.0, list[float](), threading.Lock()
        pause = rate_limit.RateLimit.pause

        def noted(paced: rate_limit.RateLimit, seconds: float, everybody: bool) -> None:
            self.rests.append(seconds)
            pause(paced, seconds, everybody)

        def moved_on(paced: rate_limit.RateLimit, seconds: float) -> None:
            if paced._stopped.is_set():
                raise rate_limit.Stopped
            with self._lock:
                self.now += seconds

        monkeypatch.setattr(rate_limit, "monotonic", lambda: self.now)
        monkeypatch.setattr(rate_limit.RateLimit, "pause", noted)
        monkeypatch.setattr(rate_limit.RateLimit, "_sleep", moved_on)
