"""Shows the progress of a long step: a log line every ten seconds, or a bar in a terminal."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType

import pandas as pd
from tqdm import tqdm

EVERY_SECONDS = 10.0
"""How often a long step logs its progress."""

logger = logging.getLogger(__name__)

with_bars = False
"""Whether to draw bars on stderr. The command line sets it in a terminal, where it hides this logger's lines."""


class Progress:
    """Logs a step's progress while its `with` block runs, and once more when the block succeeds.

    subject: the partition, or whatever else is processed; done: what is counted, such as "events read"; total: the expected
    count, or None if unknown. A line is `2026-03-02: 1,000 of 3,000 events read, 500 a second.`
    """

    def __init__(self, subject: str, done: str, total: int | None) -> None:
        self._subject, self._done, self._total, self._count = subject, done, total, 0
        self._ended, self._counting = threading.Event(), threading.Lock()

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        self._bar = tqdm(total=self._total, desc=self._subject, unit=f" {self._done}", disable=not with_bars)
        threading.Thread(target=self._log_regularly, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._bar.close()
        if kind is None:
            self._log()

    def add(self, count: int) -> None:
        """Adds to the count. Any thread may call it."""
        with self._counting:
            self._count += count
            self._bar.update(count)

    def rows_of(self, frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """Yields the frames, and counts their rows."""
        for frame in frames:
            self.add(len(frame))
            yield frame

    def _log_regularly(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._log()

    def _log(self) -> None:
        seconds = time.monotonic() - self._began
        of = "" if self._total is None else f" of {self._total:,}"
        rate = f", {_rounded(self._count / seconds)} a second" if seconds >= 1 else ""
        logger.info("%s: %s%s %s%s.", self._subject, f"{self._count:,}", of, self._done, rate)


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
