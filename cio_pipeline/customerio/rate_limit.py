"""When the next request may go: one limit, one pause and one stop for all lanes."""

from __future__ import annotations

import threading
from time import monotonic


class Stopped(Exception):
    """Another lane has failed, so nothing more is sent."""


class RateLimit:
    """At most so many requests a second over all threads that share it, and none while the service is left in peace."""

    def __init__(self, per_second: float) -> None:
        self._interval, self._next, self._lock = 1 / per_second, 0.0, threading.Lock()
        self._stopped = threading.Event()

    def wait(self) -> None:
        """Returns when the next request may go. Raises `Stopped` as soon as there shall be none."""
        while (seconds := self._take_turn()) > 0:
            self._sleep(seconds)

    def pause(self, seconds: float, everybody: bool) -> None:
        """Waits after a failure; where that concerns the whole service, nobody sends in that time."""
        if everybody:
            with self._lock:
                self._next = max(self._next, monotonic() + seconds)
        self._sleep(seconds)

    def stop(self) -> None:
        """Wakes up and stops everybody who waits or is going to."""
        self._stopped.set()

    def start(self) -> None:
        """Lets requests go again."""
        self._stopped.clear()

    def _take_turn(self) -> float:
        """0 where it is one's turn, else the seconds until it may be."""
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
