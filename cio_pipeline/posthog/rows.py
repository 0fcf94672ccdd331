"""PostHog's answer to a query by column, and events as a frame of `EVENT_SCHEMA`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cio_pipeline.posthog.exports.times import FIRST, to_datetime
from cio_pipeline.posthog.source import EVENT_SCHEMA, NotExtracted

UNPAIRED_SURROGATE = re.compile("[\ud800-\udfff]")

TIME = re.compile(
    r"""(\d{4})-(\d\d)-(\d\d)[Tt\x20](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?
        \x20?(?:[Zz]|UTC|GMT|([+-])(\d\d):?(\d\d)?(?::?(\d\d))?)?""",
    re.ASCII | re.VERBOSE,
)
"""A time with any precision and offset; without an offset it is UTC."""


NO_TIME = pd.Timestamp(to_datetime(FIRST))
"""The time of an event whose own time cannot be read."""


class Rows(NamedTuple):
    """The rows of an answer, by column, and whether there may be more rows than it has."""

    columns: dict[str, tuple[Any, ...]]
    is_full: bool

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values()), ()))

    def column(self, name: str) -> tuple[Any, ...]:
        """A column's values. Raises `NotExtracted` if the answer has no such column."""
        if name not in self.columns:
            raise NotExtracted(f"PostHog's answer lacks {name}: is POSTHOG_HOST the address of PostHog itself?")
        return self.columns[name]


def rows_in(body: Any, max_rows: int) -> Rows:
    """The rows of a query's answer; it is full if it has `max_rows`. Raises `NotExtracted` if it is not such an answer."""
    if isinstance(body, dict) and body.get("error"):
        raise NotExtracted("PostHog says that its query failed, but answers as if it had not: run the partition again.")
    try:
        names, rows = body["columns"], body["results"]
        values = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        return Rows(dict(zip(names, values, strict=True)), len(rows) >= max_rows or body.get("hasMore") is True)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise NotExtracted("PostHog's answer has no columns and results: is POSTHOG_HOST the address of PostHog?") from None


def event_frame(columns: Mapping[str, Iterable[Any]], start: datetime, end: datetime) -> pd.DataFrame:
    """The events as a frame of `EVENT_SCHEMA`, from JSON values by column; created_at and person_properties may be missing.

    A timestamp that cannot be read becomes the year 1, which R14 refuses. Raises `NotExtracted` if another column is
    missing, if a timestamp is not in `start` <= timestamp < `end`, or if no event has one.
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
    if "person_properties" in columns:
        frame["person_properties"] = frame["person_properties"].fillna("{}")
    untimed = frame["timestamp"].isna()
    is_in = frame["timestamp"].between(start, end, inclusive="left") | untimed
    if not is_in.all() or (len(frame) and untimed.all()):
        raise NotExtracted(
            f"PostHog gave events of other days than {start:%Y-%m-%d}, or without a time, or with one that is not written as"
            " ISO 8601 says: is its time zone not honoured?"
        )
    frame.loc[untimed, "timestamp"] = NO_TIME
    return frame[EVENT_SCHEMA.names]


def _times(values: Iterable[Any]) -> pd.Series[Any]:
    """The times in UTC, in microseconds; null if a value is not a time. pandas reads most of them, and faster."""
    values = list(values)
    if all(isinstance(value, str) and value[:2] in ("19", "20") for value in values):
        with suppress(ValueError):
            times = pd.to_datetime(pd.Series(values, dtype=object), utc=True, format="ISO8601")
            return times.astype("datetime64[us, UTC]")
    moments = np.array([_moment(value) for value in values], dtype="datetime64[us]")
    return pd.Series(moments).dt.tz_localize("UTC")


def _moment(value: Any) -> datetime | None:
    """A time in UTC, without its zone; None if there is none, or none within the years 1 to 9999."""
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
    """The text, with U+FFFD for an unpaired surrogate, which neither Parquet nor UTF-8 can hold, as PostHog repairs it."""
    return "" if value is None else UNPAIRED_SURROGATE.sub("\ufffd", str(value))


def _json_text(value: Any) -> str | None:
    """The text as it came, but with an unpaired surrogate written as its escape, which means the same."""
    if value is None:
        return None
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "backslashreplace").decode()
