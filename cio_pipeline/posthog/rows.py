"""Converts PostHog's answers to the rows of a query by column, and to a frame of events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cio_pipeline.posthog.source import EVENT_SCHEMA, NotExtracted
from cio_pipeline.posthog.times import FIRST, to_datetime

UNPAIRED_SURROGATE = re.compile("[\ud800-\udfff]")

TIME = re.compile(
    r"""(\d{4})-(\d\d)-(\d\d)[Tt\x20](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?
        \x20?(?:[Zz]|UTC|GMT|([+-])(\d\d):?(\d\d)?(?::?(\d\d))?)?""",
    re.ASCII | re.VERBOSE,
)
"""A time with any precision and offset; without an offset it is UTC."""

NO_TIME = pd.Timestamp(to_datetime(FIRST))
"""The timestamp of an event whose own cannot be read: in the year 1, which R14 refuses."""


class Rows(NamedTuple):
    """The rows of an answer by column. is_full: whether the query may have more rows than the answer has."""

    columns: dict[str, tuple[Any, ...]]
    is_full: bool

    @property
    def row_count(self) -> int:
        """The number of rows."""
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> tuple[Any, ...]:
        """Returns a column's values. Raises `NotExtracted` if the answer has no such column."""
        if name not in self.columns:
            raise NotExtracted(f"PostHog's answer lacks {name}: is POSTHOG_HOST the address of PostHog itself?")
        return self.columns[name]


def parse_rows(body: Any, max_rows: int) -> Rows:
    """Returns the rows of a query's answer, which is full if it has `max_rows`. Raises `NotExtracted` if it has no rows."""
    if isinstance(body, dict) and body.get("error"):
        raise NotExtracted("PostHog says that its query failed, but answers as if it had not: run the partition again.")
    try:
        names, rows = body["columns"], body["results"]
        values = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        return Rows(dict(zip(names, values, strict=True)), len(rows) >= max_rows or body.get("hasMore") is True)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise NotExtracted("PostHog's answer has no columns and results: is POSTHOG_HOST the address of PostHog?") from None


def event_frame(columns: Mapping[str, Iterable[Any]], start: datetime, end: datetime) -> pd.DataFrame:
    """Returns the events as a frame of `EVENT_SCHEMA`. columns: JSON values; created_at and person_properties may be missing.

    A timestamp that cannot be read becomes `NO_TIME`. Raises `NotExtracted` if another column is missing, if a timestamp is not
    in `start` <= timestamp < `end`, or if no event has one.
    """
    missing = [name for name in ("uuid", "event", "distinct_id", "timestamp", "properties") if name not in columns]
    if missing:
        raise NotExtracted(f"PostHog's answer lacks {', '.join(missing)}: is POSTHOG_HOST the address of PostHog itself?")
    texts = {name: [_text(value) for value in columns[name]] for name in ("event", "distinct_id")}
    uuids = [_text(value).lower() for value in columns["uuid"]]
    nulls = [None] * len(uuids)
    frame = pd.DataFrame({"uuid": uuids, **texts}, dtype=object)
    for name in ("timestamp", "created_at"):
        frame[name] = _parse_times(columns.get(name, nulls))
    for name in ("properties", "person_properties"):
        frame[name] = pd.Series([_json_text(value) for value in columns.get(name, nulls)], dtype=object)
    if "person_properties" in columns:
        frame["person_properties"] = frame["person_properties"].fillna("{}")
    has_no_time = frame["timestamp"].isna()
    is_in_window = frame["timestamp"].between(start, end, inclusive="left") | has_no_time
    if not is_in_window.all() or (len(frame) and has_no_time.all()):
        raise NotExtracted(
            f"PostHog returned events of other days than {start:%Y-%m-%d} (UTC), or without a time that can be read: does it"
            " return times in the project's time zone instead of UTC?"
        )
    frame.loc[has_no_time, "timestamp"] = NO_TIME
    return frame[EVENT_SCHEMA.names]


def _parse_times(values: Iterable[Any]) -> pd.Series[Any]:
    """The times (datetime64[us, UTC]), null if a value is not a time. pandas parses most of them, and faster."""
    values = list(values)
    if all(isinstance(value, str) and value[:2] in ("19", "20") for value in values):
        with suppress(ValueError):
            times = pd.to_datetime(pd.Series(values, dtype=object), utc=True, format="ISO8601")
            return times.astype("datetime64[us, UTC]")
    moments = np.array([_parse_time(value) for value in values], dtype="datetime64[us]")
    return pd.Series(moments).dt.tz_localize("UTC")


def _parse_time(value: Any) -> datetime | None:
    """The time in UTC, as a `datetime` without a zone; None if it is not a time, or not in the years 1 to 9999."""
    match = TIME.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    *numbers, fraction, sign, hours, minutes, seconds = match.groups()
    if int(hours or 0) > 23 or int(minutes or 0) > 59:
        return None
    microseconds = int((fraction or "")[:6].ljust(6, "0"))
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0), seconds=int(seconds or 0))
    try:
        year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
        local = datetime(year, month, day, hour, minute, second, microseconds, tzinfo=None)
        return local + offset if sign == "-" else local - offset
    except (ValueError, OverflowError):
        return None


def _text(value: Any) -> str:
    """The text, with U+FFFD instead of unpaired surrogates, which UTF-8 cannot encode. PostHog replaces them likewise."""
    return "" if value is None else UNPAIRED_SURROGATE.sub("\ufffd", str(value))


def _json_text(value: Any) -> str | None:
    """The value as JSON text, with unpaired surrogates as JSON escapes, which mean the same."""
    if value is None:
        return None
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "backslashreplace").decode()
