"""How far the reading of a day is, for a person who waits for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pandas as pd

from cio_pipeline.posthog.source import Say, Window

EVERY_SECONDS = 5.0


class Progress:
    """Counts rows, and says every five seconds how many there are, of how many, and how many a second."""

    def __init__(self, day: str, expected: int | None, say: Say) -> None:
        self._day, self._expected, self._say = day, expected, say
        self._began = self._said = time.monotonic()
        self._rows = 0

    def add(self, rows: int) -> None:
        """So many more were read."""
        self._rows += rows
        if time.monotonic() - self._said >= EVERY_SECONDS:
            self.tell()

    def tell(self) -> None:
        """Says it now."""
        self._said = time.monotonic()
        seconds = self._said - self._began
        of = "" if self._expected is None else f" of {self._expected:,}"
        rate = f", {self._rows / seconds:,.0f} a second" if seconds >= 1 else ""
        self._say(f"{self._day}: {self._rows:,}{of} events read{rate}.")


def with_progress(day: str, found: Window, say: Say) -> Iterator[pd.DataFrame]:
    """The window's frames; `say` is told of them as they come, and at their end."""
    progress = Progress(day, found.expected, say)
    for frame in found.frames:
        progress.add(len(frame))
        yield frame
    progress.tell()
