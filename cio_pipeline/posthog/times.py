"""Parses the times in exported files: text in the usual formats of ISO 8601, or a number since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from cio_pipeline.rules.values import EPOCH

ISO = re.compile(
    r"""(?P<year>\d{4}) (?P<dash>-?) (?P<month>\d\d) (?P=dash) (?P<day>\d\d)
        (?: [Tt_\x20] (?P<hour>\d\d) (?: (?P<colon>:?) (?P<minute>\d\d) (?: (?P=colon) (?P<second>\d\d) )? )?
            (?: [.,] (?P<fraction>\d+) )?
            (?: \x20? (?: Z | z | UTC | (?P<sign>[+-]) (?P<hours>\d\d) (?: :? (?P<minutes>\d\d) )? ) )? )?""",
    re.ASCII | re.VERBOSE,
)
COMMON = re.compile(r"\d{4}-\d\d-\d\d[T ](?:[01]\d|2[0-3]):\d\d:\d\d(?:\.\d{6})?(?:Z|\+00:00)", re.ASCII)
"""The format in most files, which Python can parse."""

NUMBER = re.compile(r"-?\d{9,20}(?:\.\d+)?", re.ASCII)
MICROSECOND = timedelta(microseconds=1)

UNITS = ((10**11, 1_000_000), (10**14, 1_000), (10**17, 1))
"""A number below the first value is in units of the second, in microseconds: s, ms, us. A larger one is in nanoseconds."""

FIRST = (datetime(1, 1, 2, tzinfo=UTC) - EPOCH) // MICROSECOND
LAST = (datetime(9999, 12, 30, tzinfo=UTC) - EPOCH) // MICROSECOND
"""The times, in microseconds since 1970, that a `datetime` can represent in any zone."""


def microseconds(value: Any) -> int:
    """Returns whole microseconds since 1970. Text without a zone is in UTC. Raises `ValueError` if the value is not a time."""
    if isinstance(value, str):
        text = value.strip()
        return _from_number(Decimal(text)) if NUMBER.fullmatch(text) else _from_text(text)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _from_number(Decimal(str(value)))
    raise ValueError("not a time")


def time_or_none(value: Any) -> int | None:
    """Returns `microseconds(value)`, or None if the value is not a time."""
    try:
        return microseconds(value)
    except (ValueError, ArithmeticError):
        return None


def to_datetime(microseconds: int) -> datetime:
    """Returns the time as a `datetime` in UTC, or the first or last possible one if it is out of range."""
    return EPOCH + MICROSECOND * min(max(microseconds, FIRST), LAST)


def _from_number(number: Decimal) -> int:
    if not number.is_finite():
        raise ValueError("not a time")
    for below, unit in UNITS:
        if number < below:
            return int(number * unit // 1)
    return int(number // 1000)


def _from_text(text: str) -> int:
    if COMMON.fullmatch(text):
        return (datetime.fromisoformat(text) - EPOCH) // MICROSECOND
    match = ISO.fullmatch(text)
    if match is None:
        raise ValueError("not a time")
    year, month, day, hour, minute, second, hours, minutes = (
        int(match[part] or 0) for part in ("year", "month", "day", "hour", "minute", "second", "hours", "minutes")
    )
    local = (datetime(year, month, day, hour, minute, second, tzinfo=UTC) - EPOCH) // MICROSECOND
    offset = timedelta(hours=hours, minutes=minutes) // MICROSECOND
    return local + int(f"{match['fraction'] or 0:0<6}"[:6]) - (-offset if match["sign"] == "-" else offset)
