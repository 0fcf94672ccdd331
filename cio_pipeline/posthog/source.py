"""What every way to get events out of PostHog has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple, Protocol

import pandas as pd
import pyarrow as pa

EVENT_SCHEMA = pa.schema(
    [
        ("uuid", pa.string()),
        ("event", pa.string()),
        ("distinct_id", pa.string()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("created_at", pa.timestamp("us", "UTC")),
        ("properties", pa.string()),
        ("person_properties", pa.string()),
    ]
)
"""An event as PostHog stores it; properties and the person's properties are JSON text, the latter null unless asked for."""

Say = Callable[[str], None]


class NotExtracted(Exception):
    """PostHog's events cannot be had; the message is one sentence that says what to mend."""


class Window(NamedTuple):
    """The events of a window: about how many, and the frames they come in, in any order, perhaps with duplicates.

    The frames have the columns of `EVENT_SCHEMA`. Their iterator raises `NotExtracted` rather than end short.
    """

    expected: int
    frames: Iterator[pd.DataFrame]


class EventSource(Protocol):
    """A PostHog project's events."""

    def check(self) -> None:
        """Raises `NotExtracted` where the settings do not lead to events."""

    def events(self, start: datetime, end: datetime, say: Say) -> Window:
        """The events of `start` <= timestamp < `end` that the settings need; `say` is told of progress."""

    def history(self, before: datetime, say: Say) -> Window:
        """All `$identify` and `$set` events before that time (R18)."""


def in_order(events: pd.DataFrame) -> pd.DataFrame:
    """Each uuid once, as PostHog ingested it last, by distinct_id, and of each in the order (timestamp, uuid)."""
    latest = events.sort_values("created_at", kind="stable").drop_duplicates("uuid", keep="last")
    return latest.sort_values(["distinct_id", "timestamp", "uuid"], ignore_index=True)
