"""JSON text to values and back, exactly: no integer loses digits, nothing goes out that is not valid JSON in UTF-8.

Integers of 19 digits and more may be read as `orjson.Fragment`, their text as it stands, which `write` gives back.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from typing import Any

import orjson

LONG_INTEGER = r"(?:\A|[:,\[\s-])[0-9]{19}"
"""What a number of 19 digits and more begins with, text seldom. orjson reads integers beyond 64 bits as floats, so JSON with
such a one is read by the standard library."""

ESCAPED_HALF = r"\\u[dD][89a-fA-F]"
"""Half of a surrogate pair, perhaps with the other half beside it."""

LONG_IN_BYTES, HALF_IN_BYTES = re.compile(LONG_INTEGER.encode()), re.compile(ESCAPED_HALF.encode())

LEVELS = 200
"""R14: how deep objects and arrays may be nested, the properties themselves being the first level."""

HALF = re.compile("[\ud800-\udfff]")
REPLACEMENT = "\ufffd"

INTEGER_DIGITS = 4300
"""R14: the longest integer; Python, and so perhaps whoever reads on, takes no longer one."""

NO_OBJECT = "properties are no JSON object"
NO_JSON = "properties are not JSON"
NOT_CARRIED = "a number that JSON cannot carry"
TOO_DEEP = f"nested deeper than {LEVELS} levels"


CUT = LEVELS + 50
"""Where nesting is cut: an event's properties begin a few levels below those of the answer that it comes in."""

UNREADABLE = re.compile(
    rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]|(?<![0-9.eE+-])-?[0-9]{%d,}(?![0-9.eE])' % (INTEGER_DIGITS + 1), re.DOTALL
)
"""Texts, brackets, and integers that Python does not read."""


class UnusableJson(ValueError):
    """The text is no JSON object that can be sent; the message is the reason, without any of the content."""


def loads(content: bytes) -> Any:
    """Any JSON, its integers exact. Raises `ValueError` where it is none.

    One value does not spoil the rest: where an integer is too long, or nesting too deep, to be read, NaN and a value that is
    still too deep are read instead, which R14 refuses as well.
    """
    if not LONG_IN_BYTES.search(content):
        try:
            return orjson.loads(content)
        except ValueError:
            pass  # half a surrogate pair, which only the standard library reads, or no JSON
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return json.loads(_readable(content))


def read_object(text: Any) -> dict[str, Any]:
    """The object in `text` (str, or bytes of UTF-8); absent (pandas may say NaN) or empty text is an empty object.

    Raises `UnusableJson` where the text is no JSON object or holds a number that JSON cannot carry (NaN, Infinity). Half a
    surrogate pair, which UTF-8 cannot carry, stays as it is: see `repair_surrogates`.
    """
    content = _utf8(text)
    if content and not LONG_IN_BYTES.search(content):
        with suppress(orjson.JSONDecodeError):
            return _object(orjson.loads(content))
    return _object(_read_exactly(content or b"{}", _sendable_integer, _finite, _refuse_constant))


def read_leniently(text: Any) -> dict[str, Any]:
    """Like `read_object`, for what is told by properties whether or not they are sent (R1, R5, R16).

    Numbers are read roughly, also those that JSON cannot carry; halves of surrogate pairs are U+FFFD; what is no object or too
    deep is empty.
    """
    content = _utf8(text)
    try:
        found = orjson.loads(content or b"{}")
    except orjson.JSONDecodeError:
        found = _mended_roughly(content)
    return found if isinstance(found, dict) and not is_too_deep(content, found) else {}


def is_too_deep(content: bytes, value: Any) -> bool:
    """R14: whether the value that was read from this content is nested deeper than 200 levels."""
    if content.count(b"{") + content.count(b"[") <= LEVELS:
        return False
    level = [value]
    for _ in range(LEVELS + 1):
        level = [node for node in level if isinstance(node, (dict, list))]
        if not level:
            return False
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return True


def repair_surrogates(content: bytes, found: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The object, read from this content and not too deep, with each half of a surrogate pair as U+FFFD; and the names, as they
    are then, of what this changed."""
    if b"\\" not in content or not HALF_IN_BYTES.search(content):
        return found, []
    mended = {_whole(name): _whole(value) for name, value in found.items()}
    return mended, [_whole(name) for name, value in found.items() if _whole(name) != name or mended[_whole(name)] != value]


def write(value: Any) -> bytes:
    """Compact JSON in UTF-8. Raises `UnusableJson` where JSON or UTF-8 cannot carry the value."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return _write_exactly(value)


def _readable(content: bytes) -> bytes:
    """The JSON with NaN for integers of too many digits, and 0 for what is nested `CUT` levels deep."""
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
    """Text as bytes; halves of surrogate pairs, which only text in memory can hold, as Python encodes them."""
    if isinstance(text, str):
        return text.encode("utf-8", "surrogatepass")
    return text if isinstance(text, bytes) else b""


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UnusableJson(NO_OBJECT)
    return value


def _mended_roughly(content: bytes) -> Any:
    """What orjson does not read: halves of surrogate pairs and such numbers. None where it is no object, or too deep."""
    try:
        found = _read_exactly(content, _integer, float, float)
    except UnusableJson:
        return None
    return repair_surrogates(content, found)[0] if isinstance(found, dict) and not is_too_deep(content, found) else None


def _read_exactly(content: bytes, integer: Any, number: Any, constant: Any) -> Any:
    """What the standard library reads, with functions that read integers, other numbers, and NaN or Infinity."""
    text = HALF.sub(REPLACEMENT, content.decode("utf-8", "surrogatepass"))
    try:
        return json.loads(text, parse_int=integer, parse_float=number, parse_constant=constant)
    except UnusableJson:
        raise
    except ValueError:
        raise UnusableJson(NO_JSON) from None
    except RecursionError:
        raise UnusableJson(TOO_DEEP) from None


def _integer(digits: str) -> int | orjson.Fragment:
    return int(digits) if len(digits) < 19 else orjson.Fragment(digits)


def _sendable_integer(digits: str) -> int | orjson.Fragment:
    if len(digits.removeprefix("-")) > INTEGER_DIGITS:
        raise UnusableJson(NOT_CARRIED)
    return _integer(digits)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise UnusableJson(NOT_CARRIED)
    return number


def _refuse_constant(_: str) -> float:
    raise UnusableJson(NOT_CARRIED)


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return HALF.sub(REPLACEMENT, value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(item) for name, item in value.items()}
    return value


def _write_exactly(value: Any) -> bytes:
    """For what orjson does not write: integers beyond 64 bits, nesting beyond 254 levels."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except UnicodeEncodeError:
        raise UnusableJson("text with half a surrogate pair") from None
    except (TypeError, ValueError, RecursionError):
        raise UnusableJson("a number or a depth that JSON cannot carry") from None
