"""How far a long step has come: a line in the log every ten seconds."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

EVERY_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Progress:
    """Counts what a step has done while its `with` block runs, over all its threads, and logs a last line when it ends well.

    subject: what is worked on, such as a partition; done: what is counted, such as "events read"; total: how many there are in
    all, None where nobody knows. The line is `2026-03-02: 1,000 of 3,000 events read, 500 a second.`
    """

    def __init__(self, subject: str, done: str, total: int | None) -> None:
        self._subject, self._done, self._total, self._count = subject, done, total, 0
        self._ended, self._adding = threading.Event(), threading.Lock()

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        threading.Thread(target=self._log_regularly, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if kind is None:
            self._log()

    def add(self, count: int) -> None:
        """Adds what has been done since the last call."""
        with self._adding:
            self._count += count

    def _log_regularly(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._log()

    def _log(self) -> None:
        seconds = time.monotonic() - self._began
        of = "" if self._total is None else f" of {self._total:,}"
        rate = f", {self._count / seconds:,.0f} a second" if seconds >= 1 else ""
        logger.info("%s: %s%s %s%s.", self._subject, f"{self._count:,}", of, self._done, rate)
