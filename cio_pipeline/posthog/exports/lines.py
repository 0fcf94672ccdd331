"""The events in a JSONLines file that PostHog exported, with their properties as the text in the line.

A line is an event if it is an object with most of an event's fields. Anything else that is odd in it is passed on, so that the
rules refuse this event and not the file; so is JSON in its properties that cannot be read, or is nested too deeply.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import orjson
import pyarrow as pa

from cio_pipeline.posthog.exports.columns import ESSENTIAL, JSON, NULL_MEANS, Unreadable, json_text, plain_text
from cio_pipeline.posthog.exports.times import FIRST, moment, time_or_none
from cio_pipeline.posthog.source import EVENT_SCHEMA

LINE_BYTES = 32_000_000
"""PostHog accepts no event of more than 1 MB, and no person of more."""

BOMB_BYTES, BOMB_RATIO = 512_000_000, 1000
"""What decompresses to more bytes than this, and by more than this factor, is not real events."""

MAX_BLANK_LINES = 1_000_000
"""No export has this many more blank lines than others; compressed, billions of them are a small file."""

MAX_MISSING = 2
"""Of an event's essential fields; a line that lacks more of them is something else."""

BOM = b"\xef\xbb\xbf"
MARKS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
"""How compressed files begin; brotli has no such mark."""

DIGITS = bytes(48 if 48 <= byte < 58 else 32 for byte in range(256))
LONG_INTEGER = b"0" * 19
"""If a line has that many digits in a row, orjson may lose some of them."""

TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[{}\[\]:,]', re.DOTALL)


def lines(file: IO[bytes], codec: str | None) -> Iterator[tuple[int, bytes]]:
    """The file's lines that are not blank, and their numbers. Raises `Unreadable`, or what Arrow raises."""
    size, blank = 0, 0
    with _unpacked(file, codec) as stream:
        for number in itertools.count(1):
            line = stream.readline(LINE_BYTES + 1)
            if len(line) > LINE_BYTES:
                raise Unreadable(f"its line {number} has more than {LINE_BYTES:,} bytes, and no event has")
            if not line:
                return
            size += len(line)
            if size > BOMB_BYTES and size > BOMB_RATIO * file.tell():
                raise Unreadable(f"{file.tell():,} bytes of it grow to {size:,}, as no real events do")
            if line := (line.removeprefix(BOM) if number == 1 else line).strip():
                yield number, line
                continue
            blank += 1
            if blank > MAX_BLANK_LINES + number // 2:
                raise Unreadable(f"{blank:,} of its first {number:,} lines are blank: it is no export")


def event_in(line: bytes, number: int, start: int, end: int, needs_person: bool) -> dict[str, Any] | None:
    """The line's event, as `EVENT_SCHEMA`; None if its time is not in `start` <= time < `end`, in microseconds.

    If its time cannot be read, that of its ingestion counts, or else it is included, and its timestamp is the year 1. Raises
    `Unreadable` if it is not an event.
    """
    try:
        fields = _fields(line)
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise Unreadable(f"its line {number} is not an event") from None
    missing = [name for name in ESSENTIAL if name not in fields]
    lacks_person = needs_person and "person_properties" not in fields
    if lacks_person or len(missing) > MAX_MISSING:
        names = ", ".join([*missing, *(["person_properties"] if lacks_person else [])])
        raise Unreadable(f"its line {number} is not an event, for it has no {names}")
    at, created = time_or_none(fields.get("timestamp")), time_or_none(fields.get("created_at"))
    created = at if created is None else created
    if not start <= (start if created is None else created if at is None else at) < end:
        return None
    absent = {name: "null" for name in ESSENTIAL if name in JSON}  # refused by R14
    texts = {name: NULL_MEANS[name] if (text := fields.get(name, absent.get(name))) is None else text for name in NULL_MEANS}
    if "person_properties" not in fields:
        texts["person_properties"] = None
    times = {"timestamp": moment(FIRST if at is None else at), "created_at": None if created is None else moment(created)}
    return texts | {"uuid": texts["uuid"].lower()} | times


@contextmanager
def _unpacked(file: IO[bytes], codec: str | None) -> Iterator[io.BufferedReader]:
    """The file's content, decompressed according to how it begins, since a file may have been decompressed on its way but kept
    its name."""
    start = file.read(8)
    file.seek(0)
    packed = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if codec is not None and not start:
        raise Unreadable("it is empty, as no packed file is")
    if start.startswith(b"PAR1"):
        raise Unreadable("it is a Parquet file, and its name says JSONLines")
    if start.lstrip(BOM).lstrip().startswith(b"<"):
        raise Unreadable("it is a web page or an error message, no export")
    if packed is None and codec is not None and start.lstrip(BOM).lstrip().startswith(b"{"):
        codec = None
    with pa.input_stream(file, compression=packed or codec, buffer_size=1 << 20) as stream:
        yield io.BufferedReader(stream, 1 << 20)


def _fields(line: bytes) -> dict[str, Any]:
    """The event's fields: texts, or None. Raises `ValueError` if the line is not an object."""
    if LONG_INTEGER not in line.translate(DIGITS):
        try:
            event = orjson.loads(line)
            return {name: _fast(name, value) for name, value in _lower(event).items()}
        except (ValueError, TypeError):
            pass  # the other way is slower, but reads everything
    return {name: _exact(name, value) for name, value in _lower(raw_fields(line)).items()}


def _lower(event: Any) -> dict[str, Any]:
    """The event's known fields, in any case of their names."""
    if not isinstance(event, dict):
        raise TypeError
    lower = {name.lower(): value for name, value in event.items()}
    return {name: event.get(name, lower[name]) for name in EVENT_SCHEMA.names if name in lower}


def _fast(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str) or name in ("timestamp", "created_at"):
        return value
    if name in JSON:
        return orjson.dumps(value).decode()
    raise TypeError


def _exact(name: str, raw: bytes) -> Any:
    """A text as text, any other value as it is in the line, so that numbers keep all their digits."""
    if raw == b"null":
        return None
    if not raw.startswith(b'"'):
        return json_text(raw)
    if name not in JSON:
        return plain_text(json.loads(plain_text(raw), strict=False))
    try:
        return json_text(json.loads(json_text(raw), strict=False).encode("utf-8", "surrogatepass"))
    except ValueError:
        return json_text(raw)  # no JSON object, which R14 refuses


def raw_fields(line: bytes) -> dict[str, bytes]:
    """The values of a JSON object as they are in the line, by name. Raises `ValueError` if it is not a complete object."""
    fields: dict[str, bytes] = {}
    depth, start, name = 0, 0, None
    for token in TOKEN.finditer(line):
        kind = token[0]
        if depth == 1 and name is None and kind == b":":
            name, start = json.loads(plain_text(line[start : token.start()])), token.end()
        elif depth == 1 and kind in (b",", b"}"):
            _add(fields, name, line[start : token.start()].strip())
            name, start = None, token.end()
        if kind in (b"{", b"["):
            depth += 1
            start = token.end() if depth == 1 else start
        elif kind in (b"}", b"]"):
            depth -= 1
        if depth == 0:
            if line[:1] == b"{" and kind == b"}" and token.end() == len(line):
                return fields
            break
    raise ValueError("no object")


def _add(fields: dict[str, bytes], name: Any, value: bytes) -> None:
    if not isinstance(name, str) or not value:
        if name is None and not value and not fields:
            return  # an object without fields
        raise ValueError("no object")
    fields[name] = value
