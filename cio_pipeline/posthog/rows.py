"""PostHog's JSON rows by column, and as the one frame that every stage knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import pandas as pd

from cio_pipeline.posthog.source import EVENT_SCHEMA, NotExtracted


class Found(NamedTuple):
    """An answer's values by column, and whether there may be more rows than it holds."""

    columns: dict[str, tuple[Any, ...]]
    is_full: bool

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> tuple[Any, ...]:
        """A column's values. Raises `NotExtracted` where the answer has no such column."""
        if name not in self.columns:
            raise NotExtracted(f"PostHog's answer lacks {name}: is POSTHOG_HOST the address of PostHog itself?")
        return self.columns[name]


def found_in(body: Any, most_rows: int) -> Found:
    """A query's answer; it is full where it has the most rows that there can be. Raises `NotExtracted` where it is none."""
    try:
        names, rows = body["columns"], body["results"]
        values = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        return Found(dict(zip(names, values, strict=True)), len(rows) >= most_rows or body.get("hasMore") is True)
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise NotExtracted("PostHog's answer has no columns and results: is POSTHOG_HOST the address of PostHog?") from wrong


def event_frame(columns: Mapping[str, Iterable[Any]], start: datetime, end: datetime) -> pd.DataFrame:
    """The rows as `EVENT_SCHEMA` says, from JSON values by column; created_at and person_properties may be missing.

    Raises `NotExtracted` where another column is missing, or a timestamp is none or not in `start` <= timestamp < `end`.
    """
    missing = [name for name in ("uuid", "event", "distinct_id", "timestamp", "properties") if name not in columns]
    if missing:
        raise NotExtracted(f"PostHog's answer lacks {', '.join(missing)}: is POSTHOG_HOST the address of PostHog itself?")
    texts = {name: [_text(value) for value in columns[name]] for name in ("event", "distinct_id")}
    uuids = [_text(value).lower() for value in columns["uuid"]]
    nothing = [None] * len(uuids)
    frame = pd.DataFrame({"uuid": uuids, **texts}, dtype=object)
    for name in ("timestamp", "created_at"):
        frame[name] = _times(columns.get(name, nothing))
    for name in ("properties", "person_properties"):
        frame[name] = pd.Series([_json_text(value) for value in columns.get(name, nothing)], dtype=object)
    if not frame["timestamp"].between(start, end, inclusive="left").all():
        raise NotExtracted(
            f"PostHog gave events of other days than {start:%Y-%m-%d}, or without a time: its time zone is not honoured."
        )
    return frame[EVENT_SCHEMA.names]


def _times(values: Iterable[Any]) -> pd.Series[Any]:
    try:
        texts = [None if value is None else str(value) for value in values]
        times = pd.to_datetime(pd.Series(texts, dtype=object), utc=True, format="ISO8601")
    except ValueError as wrong:
        raise NotExtracted("PostHog gave a time that is not written as ISO 8601 says.") from wrong
    return times.astype("datetime64[us, UTC]")


def _text(value: Any) -> str:
    """Half a surrogate pair, which neither Parquet nor UTF-8 holds, is written as its escape."""
    return "" if value is None else str(value).encode("utf-8", "backslashreplace").decode()


def _json_text(value: Any) -> str | None:
    if value is None:
        return None
    return _text(value if isinstance(value, str) else json.dumps(value))
