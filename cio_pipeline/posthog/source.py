"""What every way to get events out of PostHog has in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Protocol

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

EVER = datetime(1970, 1, 1, tzinfo=timezone.utc)
HISTORY_EVENTS = ("$identify", "$set")
"""What teaches R1's facts before the first day (R18)."""

Say = Callable[[str], None]


def quietly(_: str) -> None:
    """Says nothing."""


class NotExtracted(Exception):
    """PostHog's events cannot be had; the message is one sentence that says what to mend."""


@dataclass(frozen=True)
class Window:
    """The events of a window: about how many, and the frames they come in, in any order, perhaps with duplicates.

    The frames have the columns of `EVENT_SCHEMA`. Their iterator raises `NotExtracted` rather than end short. `facts` says
    what the reading took (requests, bytes), by name; it is complete when the frames are exhausted.
    """

    expected: int
    frames: Iterator[pd.DataFrame]
    facts: dict[str, int] = field(default_factory=dict)


class EventSource(Protocol):
    """A PostHog project's events."""

    def check(self, say: Say = quietly) -> None:
        """Raises `NotExtracted` where the settings do not lead to events; `say` is told of long waits."""

    def events(self, start: datetime, end: datetime, say: Say) -> Window:
        """The events of `start` <= timestamp < `end` that the settings need; `say` is told of progress."""

    def history(self, before: datetime, say: Say) -> Window:
        """All `$identify` and `$set` events before that time (R18)."""


def in_order(events: pd.DataFrame) -> pd.DataFrame:
    """Each event once, as PostHog ingested it last, by distinct_id, and of each in the order (timestamp, uuid, name)."""
    keys = events[["uuid", "event", "distinct_id", "timestamp", "created_at"]].reset_index(drop=True)
    keys = keys.assign(day=keys["timestamp"].dt.floor("D")).sort_values("created_at", kind="stable")
    latest = keys.drop_duplicates(["day", "event", "distinct_id", "uuid"], keep="last")
    ordered = latest.sort_values(["distinct_id", "timestamp", "uuid", "event"])
    return events.take(ordered.index.to_numpy()).reset_index(drop=True)
