"""JSON text to values and back, exactly: no integer loses digits, nothing goes out that is not valid JSON in UTF-8."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

LONG_INTEGER = r"[0-9]{19}"
"""orjson reads integers beyond 64 bits as floats, so JSON with such a run of digits is read by the standard library."""

IN_TEXT, IN_BYTES = re.compile(LONG_INTEGER), re.compile(LONG_INTEGER.encode())


class UnusableJson(ValueError):
    """The text is no JSON object that can be sent; the message is the reason, without any of the content."""


def loads(content: bytes) -> Any:
    """Any JSON, its integers exact. Raises `ValueError` where it is none, `RecursionError` where it is too deep."""
    if not IN_BYTES.search(content):
        try:
            return orjson.loads(content)
        except ValueError:
            pass  # half a surrogate pair, which only the standard library reads, or no JSON
    return json.loads(content)


def read_object(text: Any) -> dict[str, Any]:
    """The object in `text`; absent (pandas may say NaN) or empty text is an empty object.

    Raises `UnusableJson` where the text is no JSON object or holds what UTF-8 or JSON cannot carry
    (a lone surrogate, NaN, Infinity).
    """
    if not isinstance(text, str) or not text:
        return {}
    value = _read(text)
    if not isinstance(value, dict):
        raise UnusableJson("properties are no JSON object")
    return value


def peek_object(text: Any) -> dict[str, Any]:
    """Like `read_object`, for facts (R1): what cannot be sent may still be read, what cannot be read is empty."""
    if not isinstance(text, str) or not text:
        return {}
    try:
        value = _read_leniently(text)
    except UnusableJson:
        return {}
    return value if isinstance(value, dict) else {}


def write(value: Any) -> bytes:
    """Compact JSON in UTF-8. Raises `UnusableJson` where JSON or UTF-8 cannot carry the value."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return _write_exactly(value)


def _read(text: str) -> Any:
    if not IN_TEXT.search(text):
        try:
            return orjson.loads(text)
        except ValueError:
            pass
    value = _read_leniently(text)
    _write_exactly(value)
    return value


def _read_leniently(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnusableJson("properties are not JSON") from None


def _write_exactly(value: Any) -> bytes:
    """For what orjson does not write: integers beyond 64 bits, nesting beyond 254 levels."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        raise UnusableJson("text with a lone surrogate") from None
    except (ValueError, RecursionError):
        raise UnusableJson("a number or a depth that JSON cannot carry") from None
