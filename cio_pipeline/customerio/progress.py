"""How far a delivery is, in the log."""

from __future__ import annotations

import logging
import threading
from time import monotonic

SECONDS = 10.0
"""Between two lines."""

log = logging.getLogger(__name__)


class Progress:
    """Counts the events of a day that are done with, over all threads, and logs it every ten seconds, with the rate."""

    def __init__(self, day: str, events: int | None) -> None:
        """events: how many the day has, where that is known."""
        self._day, self._of = day, "" if events is None else f" of {events:,}"
        self._done, self._lock = 0, threading.Lock()
        self._started = self._last = monotonic()

    def add(self, events: int) -> None:
        """So many more events are done with."""
        with self._lock:
            self._done += events
            now = monotonic()
            if now - self._last < SECONDS:
                return
            self._last, done = now, self._done
        log.info("%s: %s%s events, %s a second.", self._day, f"{done:,}", self._of, f"{done / (now - self._started):,.0f}")
