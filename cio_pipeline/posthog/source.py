"""The interface of all sources of PostHog's events, and what they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import pandas as pd
import pyarrow as pa

from cio_pipeline.errors import PipelineError
from cio_pipeline.rules.facts import ORDER
from cio_pipeline.rules.values import is_uuid

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
"""An event as PostHog stores it. `properties` and `person_properties` are JSON; the latter is null if a source has none.

In the tables that the extraction writes, `person_properties` is null unless it is to be used instead of `$set` (R20).
"""

NEEDED = "needed"
"""A column that frames of events may have besides: whether the settings need the row (bool). One that they do not need still
counts as a copy of its event: were it left out at once, an older copy that they do need would take its place."""

HISTORY_EVENTS = ("$identify", "$set")
"""The events that identify people from before the first day (R18)."""

EVENT_KEY = ["day", "uuid", "event", "distinct_id", "row"]
"""The columns that identify an event: rows with equal values are the same event."""


class NotExtracted(PipelineError):
    """PostHog's events cannot be read; the message is one sentence that says what to do."""


class NothingSoFar(NotExtracted):
    """Nothing of a day that is not over is available yet, which is not a failure; the message says why."""


@dataclass(frozen=True)
class EventStream:
    """The events of a time window.

    expected: their approximate number, None if unknown; frames: pandas or Arrow tables of `EVENT_SCHEMA`, perhaps also with
    `NEEDED`, in any order, perhaps with duplicates, whose iterator raises `NotExtracted` if it cannot give all events; stats:
    the requests and bytes that reading took, by name, complete once the frames are exhausted; fingerprint: equal fingerprints
    mean equal events; None if unknown.
    """

    expected: int | None
    frames: Iterator[Any]
    stats: dict[str, int] = field(default_factory=dict)
    fingerprint: str | None = None


class EventSource(Protocol):
    """A source of a PostHog project's events."""

    def check(self) -> None:
        """Raises `NotExtracted` if the settings do not give access to events."""

    def events(self, start: datetime, end: datetime) -> EventStream:
        """Returns the events with `start` <= timestamp < `end` that the settings need."""

    def readable_until(self, start: datetime, moment: datetime) -> datetime:
        """Returns the time, at most `moment`, up to which the events of the day that begins at `start` are available. Raises
        `NothingSoFar`."""

    def history(self, before: datetime) -> EventStream:
        """Returns all `$identify` and `$set` events before that time (R18: history)."""


def without_duplicates(events: pd.DataFrame) -> pd.DataFrame:
    """Returns each event once, as PostHog ingested it last, sorted by distinct_id, timestamp, uuid and name.

    Rows with the same day, name, distinct_id and uuid are the same event, as in PostHog. If the uuid is not valid, only rows
    that are equal in every column are, because PostHog would not have considered others the same.
    """
    events = events.reset_index(drop=True)
    is_repeated = _is_repeated(events)
    last = _repeated_rows(events, is_repeated).drop_duplicates(EVENT_KEY, keep="last")
    rows = events.loc[~is_repeated, ORDER].index.append(last.index)
    ordered = events.loc[rows, ORDER].sort_values(["distinct_id", "timestamp", "uuid", "event"])
    return events.take(ordered.index.to_numpy()).reset_index(drop=True)


def count_duplicates(events: pd.DataFrame) -> Counter[str]:
    """Returns how many rows `without_duplicates` leaves out, by reason."""
    events = events.reset_index(drop=True)
    repeated = _repeated_rows(events, _is_repeated(events))
    same = int(repeated.drop(columns=["day", "row"]).duplicated().sum())
    later = len(repeated) - repeated.drop_duplicates(EVENT_KEY).shape[0] - same
    return +Counter({"duplicates: the same row again": same, "duplicates: ingested again, the last one counts": later})


def _is_repeated(events: pd.DataFrame) -> pd.Series[bool]:
    """Which rows are of an event that has several rows. The other columns are compared only if the uuid is repeated."""
    is_repeated = events["uuid"].duplicated(keep=False)
    is_repeated[is_repeated] = _with_key(events[is_repeated]).duplicated(EVENT_KEY, keep=False)
    return is_repeated


def _repeated_rows(events: pd.DataFrame, is_repeated: pd.Series[bool]) -> pd.DataFrame:
    """The rows of events that have several, with the columns of `EVENT_KEY`, sorted by time of ingestion, then by content."""
    by = ["created_at", "timestamp", "properties", "person_properties"]
    return _with_key(events[is_repeated]).sort_values(by, kind="stable", na_position="first")


def _with_key(events: pd.DataFrame) -> pd.DataFrame:
    """The events with the columns of `EVENT_KEY`. `row` is the whole row as text if the uuid is not valid, otherwise ""."""
    rows = zip(*(events[name] for name in EVENT_SCHEMA.names), strict=True)
    texts = ["" if is_uuid(row[0]) else repr(row) for row in rows]
    return events.assign(day=events["timestamp"].dt.floor("D"), row=pd.Series(texts, events.index, dtype=object))
