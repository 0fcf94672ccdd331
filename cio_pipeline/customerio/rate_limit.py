"""Decides when the next request may be sent: one limit, one pause and one stop for all lanes."""

from __future__ import annotations

import threading
from time import monotonic


class Stopped(Exception):
    """Another lane has failed, so nothing more is sent."""


class RateLimit:
    """At most `per_second` requests a second over all threads that share it, and none during a pause."""

    def __init__(self, per_second: float) -> None:
        self._interval, self._next, self._lock = 1 / per_second, 0.0, threading.Lock()
        self._stopped = threading.Event()

    def wait(self) -> None:
        """Returns when the next request may be sent. Raises `Stopped` as soon as no more are to be sent."""
        while (seconds := self._take_turn()) > 0:
            self._sleep(seconds)

    def pause(self, seconds: float, everybody: bool) -> None:
        """Waits after a failure. If that concerns the whole service (`everybody`), no thread sends during that time."""
        if everybody:
            with self._lock:
                self._next = max(self._next, monotonic() + seconds)
        self._sleep(seconds)

    def stop(self) -> None:
        """Stops all threads that wait, or will."""
        self._stopped.set()

    def start(self) -> None:
        """Allows requests again."""
        self._stopped.clear()

    def _take_turn(self) -> float:
        """0 if a request may be sent now, or the seconds until it may be."""
        if self._stopped.is_set():
            raise Stopped
        with self._lock:
            now = monotonic()
            if now < self._next:
                return self._next - now
            self._next = now + self._interval
            return 0.0

    def _sleep(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Stopped
