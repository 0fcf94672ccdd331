"""The rules about single values: e-mails (R2), `created_at` (R9), text that is cut (R10) and event ids (R12)."""

from __future__ import annotations

import base64
import re
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

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
MILLISECONDS_ABOVE = 100_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

CROCKFORD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", b"0123456789ABCDEFGHJKMNPQRSTVWXYZ")


def is_email(value: Any) -> bool:
    """R2: the documented connector's pattern on the lower-cased text."""
    return isinstance(value, str) and EMAIL.fullmatch(value.lower()) is not None


def unix_seconds(value: Any) -> int | None:
    """R9: ISO text (no zone = UTC), a number or text of 9 to 13 digits as whole Unix seconds, else None."""
    if isinstance(value, str):
        return _number_seconds(int(value)) if DIGITS.fullmatch(value) else _iso_seconds(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _number_seconds(value)
    return None


def cut(text: str, limit: int) -> str:
    """R10: `text` to at most `limit` bytes of UTF-8, at a character boundary."""
    return text.encode()[:limit].decode(errors="ignore")


def ulid(event_uuid: str) -> str | None:
    """R12: the uuid's 128 bits in Crockford base 32, 26 characters; None where the text is no uuid."""
    try:
        bits = uuid.UUID(event_uuid).int
    except ValueError:
        return None
    return base64.b32encode(bits.to_bytes(20, "big"))[6:].translate(CROCKFORD).decode()


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
        moment = datetime(year, month, day, hour, minute, second, tzinfo=timezone.utc)
    except ValueError:
        return None
    offset = timedelta(hours=offset_hours, minutes=offset_minutes)
    return int((moment - EPOCH - (-offset if match["sign"] == "-" else offset)).total_seconds())
