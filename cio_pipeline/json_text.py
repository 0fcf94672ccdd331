"""Reads and writes JSON exactly: integers keep all their digits, and only valid JSON in UTF-8 is written.

Integers of 19 digits and more may be read as `orjson.Fragment`, which is their text, and which `write` writes as it is.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from typing import Any

import orjson

LONG_INTEGER = r"(?:\A|[:,\[\s-])[0-9]{19}"
"""Matches the start of a number of 19 or more digits, and rarely text. orjson reads integers beyond 64 bits as floats, so
JSON that contains one is read by the standard library."""

ESCAPED_SURROGATE = r"\\u[dD][89a-fA-F]"
"""The escape of a surrogate, paired or not."""

LONG_INTEGER_BYTES, SURROGATE_BYTES = re.compile(LONG_INTEGER.encode()), re.compile(ESCAPED_SURROGATE.encode())

MAX_LEVELS = 200
"""The deepest nesting of objects and arrays (R14: what cannot be sent); the properties themselves are the first level."""

HALF = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"

MAX_INTEGER_DIGITS = 4300
"""The longest integer that Python reads, and perhaps whatever reads it after us (R14)."""

NOT_AN_OBJECT = "properties are not a JSON object"
NOT_JSON = "properties are not JSON"
NOT_EXPRESSIBLE = "a number that JSON cannot express"
TOO_DEEP = f"nested deeper than {MAX_LEVELS} levels"


CUT = MAX_LEVELS + 50
"""The level at which nesting is cut. It exceeds `MAX_LEVELS` as properties are themselves nested in an answer."""

UNREADABLE = re.compile(
    rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]|(?<![0-9.eE+-])-?[0-9]{%d,}(?![0-9.eE])' % (MAX_INTEGER_DIGITS + 1), re.DOTALL
)
"""Strings, brackets, and integers that Python cannot read."""


class UnusableJson(ValueError):
    """The text is not a JSON object that can be sent. The message is the reason, and quotes none of the content."""


def loads(content: bytes) -> Any:
    """Parses any JSON, with exact integers. Raises `ValueError` if it is not JSON.

    One value does not spoil the rest: an integer that is too long to be read becomes NaN, and nesting that is too deep is cut
    at a level that is still too deep for R14, so that R14 refuses both.
    """
    if not LONG_INTEGER_BYTES.search(content):
        try:
            return orjson.loads(content)
        except ValueError:
            pass  # an unpaired surrogate, which only the standard library reads, or not JSON
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return json.loads(_readable(content))


def read_object(text: Any) -> dict[str, Any]:
    """Parses the JSON object in `text` (str, or bytes of UTF-8). Null (in pandas also NaN) or empty text is an empty object.

    Raises `UnusableJson` if the text is not a JSON object, or has a number that JSON cannot express (NaN, Infinity). An
    unpaired surrogate, which UTF-8 cannot express, stays in it: see `repair_surrogates`.
    """
    content = _utf8(text)
    if content and not LONG_INTEGER_BYTES.search(content):
        with suppress(orjson.JSONDecodeError):
            return _object(orjson.loads(content))
    return _object(_read_exactly(content or b"{}", _sendable_integer, _finite, _refuse_constant))


def read_leniently(text: Any) -> dict[str, Any]:
    """Like `read_object`, but never raises: for what the rules read from properties even if these are not sent (R1, R5, R16).

    Numbers are approximate, and may be ones that JSON cannot express. An unpaired surrogate becomes U+FFFD. Text that is not an
    object, or is nested too deeply, becomes an empty object.
    """
    content = _utf8(text)
    try:
        value = orjson.loads(content or b"{}")
    except orjson.JSONDecodeError:
        value = _read_roughly(content)
    return value if isinstance(value, dict) and not is_too_deep(content, value) else {}


def is_too_deep(content: bytes, value: Any) -> bool:
    """True if the value, which was read from this content, is nested deeper than 200 levels (R14)."""
    if content.count(b"{") + content.count(b"[") <= MAX_LEVELS:
        return False
    level = [value]
    for _ in range(MAX_LEVELS + 1):
        level = [node for node in level if isinstance(node, (dict, list))]
        if not level:
            return False
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return True


def repair_surrogates(content: bytes, members: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replaces each unpaired surrogate by U+FFFD. Returns the object, and the names of its members that have changed.

    members: those of an object that was read from this content, and is not nested too deeply.
    """
    if b"\\" not in content or not SURROGATE_BYTES.search(content):
        return members, []
    repaired = {_whole(name): _whole(value) for name, value in members.items()}
    changed = (_whole(name) for name, value in members.items() if _whole(name) != name or repaired[_whole(name)] != value)
    return repaired, list(changed)


def write(value: Any) -> bytes:
    """Returns compact JSON in UTF-8. Raises `UnusableJson` if JSON or UTF-8 cannot express the value."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return _write_exactly(value)


def _readable(content: bytes) -> bytes:
    """Returns the JSON with integers of too many digits replaced by NaN, and what is nested `CUT` levels deep by 0."""
    kept, depth, start = [], 0, 0
    for token in UNREADABLE.finditer(content):
        kind = token[0][:1]
        if kind in b"[{":
            depth += 1
            if depth == CUT:
                kept += [content[start : token.start()], b"0"]
        elif kind in b"]}":
            if depth == CUT:
                start = token.end()
            depth -= 1
        elif kind != b'"' and depth < CUT:
            kept += [content[start : token.start()], b"NaN"]
            start = token.end()
    return b"".join([*kept, content[start:]])


def _utf8(text: Any) -> bytes:
    """Returns the text as bytes. Unpaired surrogates, which only a str can hold, are encoded as Python does
    (`surrogatepass`)."""
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    return text if isinstance(text, bytes) else b""


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnusableJson(NOT_AN_OBJECT)
    return value


def _read_roughly(content: bytes) -> Any:
    """Reads what orjson cannot: unpaired surrogates, NaN and Infinity. Returns None unless it is an object, not too deep."""
    try:
        value = _read_exactly(content, _integer, float, float)
    except UnusableJson:
        return None
    return repair_surrogates(content, value)[0] if isinstance(value, dict) and not is_too_deep(content, value) else None


def _read_exactly(content: bytes, integer: Any, number: Any, constant: Any) -> Any:
    """Reads JSON with the standard library, and these functions for integers, other numbers, and NaN or Infinity."""
    text = HALF.sub(REPLACEMENT, content.decode("utf-8", "surrogatepass"))
    try:
        return json.loads(text, parse_int=integer, parse_float=number, parse_constant=constant)
    except UnusableJson:
        raise
    except ValueError:
        raise UnusableJson(NOT_JSON) from None
    except RecursionError:
        raise UnusableJson(TOO_DEEP) from None


def _integer(digits: str) -> int | orjson.Fragment:
    return int(digits) if len(digits) < 19 else orjson.Fragment(digits)


def _sendable_integer(digits: str) -> int | orjson.Fragment:
    if len(digits.removeprefix("-")) > MAX_INTEGER_DIGITS:
        raise UnusableJson(NOT_EXPRESSIBLE)
    return _integer(digits)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise UnusableJson(NOT_EXPRESSIBLE)
    return number


def _refuse_constant(_: str) -> float:
    raise UnusableJson(NOT_EXPRESSIBLE)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return HALF.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value


def _write_exactly(value: Any) -> bytes:
    """Writes what orjson cannot: integers beyond 64 bits, nesting beyond 254 levels."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        raise UnusableJson("text with half a surrogate pair") from None
    except (TypeError, ValueError, RecursionError):
        raise UnusableJson("a number or a depth that JSON cannot express") from None
