"""The rules about single values: emails (R2), `created_at` (R9), text that is cut (R10) and uuids (R14)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from cio_pipeline.rules.limits import MAX_ATTRIBUTE_VALUE_BYTES

EMAIL = re.compile(
    r"""(?: [^<>()\[\]\\.,;:\s\ufeff@"\ud800-\udfff]+ (?: \. [^<>()\[\]\\.,;:\s\ufeff@"\ud800-\udfff]+ )*
          | "[^\n\r\u2028\u2029\ud800-\udfff]+" )
        @ (?: \[ [0-9]{1,3} \. [0-9]{1,3} \. [0-9]{1,3} \. [0-9]{1,3} \]
            | (?: [a-z0-9-]+ \. )+ [a-z]{2,} )""",
    re.VERBOSE,
)

ISO = re.compile(
    r"""(?P<year>\d{4}) (?P<dash>-?) (?P<month>\d\d) (?P=dash) (?P<day>\d\d)
        (?: [Tt\x20] (?P<hour>\d\d) (?: (?P<colon>:?) (?P<minute>\d\d) (?: (?P=colon) (?P<second>\d\d) (?: [.,]\d+ )? )? )?
            (?: [Zz] | (?P<sign>[+-]) (?P<hours>[01]\d|2[0-3]) (?: :? (?P<minutes>[0-5]\d) )? )? )?""",
    re.ASCII | re.VERBOSE,
)
ISO_NUMBERS = ("year", "month", "day", "hour", "minute", "second", "hours", "minutes")
DIGITS = re.compile(r"[0-9]{9,13}")
MIN_NUMBER, MAX_NUMBER, MILLISECONDS_ABOVE = 10**8, 10**13, 10**11
"""R9: times have 9 to 13 digits before the fraction; above 10^11 they are milliseconds."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

UUID = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")


def is_email(value: Any) -> bool:
    """R2: whether the value is a text of at most 1000 bytes that matches, in lower case, the pattern of PostHog's app."""
    return isinstance(value, str) and _is_email(value)


@lru_cache(maxsize=100_000)
def _is_email(text: str) -> bool:
    """Cached, as a shard has the same few thousand emails again and again."""
    return EMAIL.fullmatch(text.lower()) is not None and len(text.encode()) <= MAX_ATTRIBUTE_VALUE_BYTES


def unix_seconds(value: Any) -> int | None:
    """R9: ISO text (no zone = UTC), or a number or text of 9 to 13 digits, as whole Unix seconds; else None."""
    if isinstance(value, str):
        return _number_seconds(int(value)) if DIGITS.fullmatch(value) else _iso_seconds(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and MIN_NUMBER <= value < MAX_NUMBER:
        return _number_seconds(value)
    return None


def cut(text: str, limit: int) -> str:
    """R10: the text, cut to at most `limit` bytes of UTF-8 at a character boundary."""
    return text.encode()[:limit].decode(errors="ignore")


def is_uuid(text: str) -> bool:
    """R14: 32 hexadecimal digits in the groups of a UUID."""
    return UUID.fullmatch(text) is not None


def _number_seconds(number: float) -> int:
    if number > MILLISECONDS_ABOVE:
        return number // 1000 if isinstance(number, int) else int(number / 1000)
    return int(number)


def _iso_seconds(text: str) -> int | None:
    match = ISO.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second, offset_hours, offset_minutes = (int(match[part] or 0) for part in ISO_NUMBERS)
    try:
        moment = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    offset = timedelta(hours=offset_hours, minutes=offset_minutes)
    return int((moment - EPOCH - (-offset if match["sign"] == "-" else offset)).total_seconds())
