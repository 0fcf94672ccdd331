"""JSON text to values and back, exactly: no integer loses digits, nothing goes out that is not valid JSON in UTF-8.

Integers of 19 digits and more are read as `orjson.Fragment`, their text as it stands, which `write` gives back.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

LONG_INTEGER = r"[0-9]{19}"
"""orjson reads integers beyond 64 bits as floats, so JSON with such a run of digits is read by the standard library."""

IN_TEXT, IN_BYTES = re.compile(LONG_INTEGER), re.compile(LONG_INTEGER.encode())

LEVELS = 200
"""R14: how deep objects and arrays may be nested, the properties themselves being the first level."""

ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")
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
    if not IN_BYTES.search(content):
        try:
            return orjson.loads(content)
        except ValueError:
            pass  # half a surrogate pair, which only the standard library reads, or no JSON
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return json.loads(_readable(content))


def read_object(text: Any) -> dict[str, Any]:
    """The object in `text`; absent (pandas may say NaN) or empty text is an empty object.

    Raises `UnusableJson` where the text is no JSON object or holds a number that JSON cannot carry (NaN, Infinity). Half a
    surrogate pair, which UTF-8 cannot carry, stays as it is: see `repair_surrogates`.
    """
    return _object(text, _sendable_integer, _finite, _refuse_constant)


def read_leniently(text: Any) -> dict[str, Any]:
    """Like `read_object`, for what is told by properties whether or not they are sent (R1, R5, R16).

    Numbers that JSON cannot carry are read, halves of surrogate pairs are U+FFFD; what is no object or too deep is empty.
    """
    try:
        found = _object(text, _integer, float, float)
    except UnusableJson:
        return {}
    return {} if is_too_deep(text, found) else repair_surrogates(text, found)[0]


def is_too_deep(text: Any, value: Any) -> bool:
    """R14: whether the value that was read from this text is nested deeper than 200 levels."""
    if not isinstance(text, str) or text.count("{") + text.count("[") <= LEVELS:
        return False
    level = [value]
    for _ in range(LEVELS + 1):
        level = [node for node in level if isinstance(node, (dict, list))]
        if not level:
            return False
        level = [child for node in level for child in (node.values() if isinstance(node, dict) else node)]
    return True


def repair_surrogates(text: Any, found: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The object, read from this text and not too deep, with each half of a surrogate pair as U+FFFD; and the names, as they
    are then, of what this changed."""
    if not isinstance(text, str) or not ESCAPED_HALF.search(text):
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


def _object(text: Any, integer: Any, number: Any, constant: Any) -> dict[str, Any]:
    if not isinstance(text, str) or not text:
        return {}
    value = _read(text, integer, number, constant)
    if not isinstance(value, dict):
        raise UnusableJson(NO_OBJECT)
    return value


def _read(text: str, integer: Any, number: Any, constant: Any) -> Any:
    if not IN_TEXT.search(text):
        try:
            return orjson.loads(text)
        except ValueError:
            pass
    try:
        return json.loads(HALF.sub(REPLACEMENT, text), parse_int=integer, parse_float=number, parse_constant=constant)
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
