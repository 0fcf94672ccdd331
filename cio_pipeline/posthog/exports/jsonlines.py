"""Reads the events in a JSONLines file that PostHog exported, with their properties exactly as in the line.

A line is an event if it is an object with most of an event's fields. Whatever else is wrong with it is passed on, such as
properties that are not valid JSON or are nested too deeply, so that the rules refuse this event rather than the whole file.
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

from cio_pipeline.posthog.exports.columns import (
    JSON_COLUMNS,
    NULL_TEXTS,
    REQUIRED,
    TIME_COLUMNS,
    UnreadableFile,
    decode_json,
    decode_text,
)
from cio_pipeline.posthog.exports.event_filter import EventFilter
from cio_pipeline.posthog.exports.limits import BOMB_BYTES, BOMB_RATIO, MAX_EVENT_BYTES, PIECE_BYTES, PIECE_ROWS
from cio_pipeline.posthog.source import EVENT_SCHEMA
from cio_pipeline.posthog.times import FIRST, MICROSECOND, time_or_none, to_datetime
from cio_pipeline.rules.values import EPOCH

MAX_BLANK_LINES = 1_000_000
"""A file may have this many more blank lines than others. Compressed, billions of them would be a small file."""

MAX_MISSING_FIELDS = 2
"""A line that lacks more of an event's required fields is something else."""

BOM = b"\xef\xbb\xbf"
MAGIC_NUMBERS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
"""How compressed files begin, except for brotli's, which have no magic number."""

DIGITS_TO_ZERO = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
LONG_INTEGER = b"0" * 19
"""If a line has this many digits in a row, orjson may lose some of them."""

TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[{}\[\]:,]', re.DOTALL)


def read_jsonlines(file: IO[bytes], codec: str | None, event_filter: EventFilter) -> Iterator[pa.Table]:
    """Yields the file's events that the filter selects, in tables of `EVENT_SCHEMA`.

    codec: the compression that the file's name says. Raises `UnreadableFile`, and `ArrowException` or `OSError` if the file is
    damaged.
    """
    start, end = ((time - EPOCH) // MICROSECOND for time in (event_filter.start, event_filter.end))
    events: list[dict[str, Any]] = []
    size = 0
    for number, line in _read_lines(file, codec):
        if event := _parse_event(line, number, start, end, event_filter.requires_person_properties):
            events.append(event if event_filter.reads_person_properties else {**event, "person_properties": None})
            size += len(line)
        if len(events) >= PIECE_ROWS or size >= PIECE_BYTES:
            yield event_filter.select(pa.Table.from_pylist(events, schema=EVENT_SCHEMA))
            events, size = [], 0
    yield event_filter.select(pa.Table.from_pylist(events, schema=EVENT_SCHEMA))


def _read_lines(file: IO[bytes], codec: str | None) -> Iterator[tuple[int, bytes]]:
    """The number and the text of each line that is not blank."""
    size, blank = 0, 0
    with _decompressed(file, codec) as stream:
        for number in itertools.count(1):
            line = stream.readline(MAX_EVENT_BYTES + 1)
            if len(line) > MAX_EVENT_BYTES:
                raise UnreadableFile(f"its line {number} has more than {MAX_EVENT_BYTES:,} bytes, which no event has")
            if not line:
                return
            size += len(line)
            if size > BOMB_BYTES and size > BOMB_RATIO * file.tell():
                raise UnreadableFile(f"{file.tell():,} bytes of it grow to {size:,}, which real events do not")
            if line := (line.removeprefix(BOM) if number == 1 else line).strip():
                yield number, line
                continue
            blank += 1
            if blank > MAX_BLANK_LINES + number // 2:
                raise UnreadableFile(f"{blank:,} of its first {number:,} lines are blank, so it is not an export")


@contextmanager
def _decompressed(file: IO[bytes], codec: str | None) -> Iterator[io.BufferedReader]:
    """The file's content. How the file begins counts more than its name, which it may have kept when it was decompressed on
    its way."""
    start = file.read(8)
    file.seek(0)
    detected = next((name for magic, name in MAGIC_NUMBERS.items() if start.startswith(magic)), None)
    if codec is not None and not start:
        raise UnreadableFile("it is empty, which a compressed file never is")
    if start.startswith(b"PAR1"):
        raise UnreadableFile("it is a Parquet file, but its name says JSONLines")
    if start.lstrip(BOM).lstrip().startswith(b"<"):
        raise UnreadableFile("it is a web page or an error message, not an export")
    if detected is None and codec is not None and start.lstrip(BOM).lstrip().startswith(b"{"):
        codec = None
    with pa.input_stream(file, compression=detected or codec, buffer_size=1 << 20) as stream:
        yield io.BufferedReader(stream, 1 << 20)


def _parse_event(line: bytes, number: int, start: int, end: int, requires_person_properties: bool) -> dict[str, Any] | None:
    """The line's event by the columns of `EVENT_SCHEMA`; None unless its time is in `start` <= time < `end`, in microseconds.

    If its timestamp cannot be read, its created_at counts instead; if that cannot be read either, the event is in every
    window. Its timestamp is then in the year 1. Raises `UnreadableFile` if the line is not an event.
    """
    try:
        fields = _parse_fields(line)
    except (ValueError, TypeError, RecursionError, OverflowError):
        raise UnreadableFile(f"its line {number} is not an event") from None
    missing = [name for name in REQUIRED if name not in fields]
    lacks_person = requires_person_properties and "person_properties" not in fields
    if lacks_person or len(missing) > MAX_MISSING_FIELDS:
        names = ", ".join([*missing, *(["person_properties"] if lacks_person else [])])
        raise UnreadableFile(f"its line {number} is not an event, as it has no {names}")
    timestamp, created_at = time_or_none(fields.get("timestamp")), time_or_none(fields.get("created_at"))
    created_at = timestamp if created_at is None else created_at
    time = created_at if timestamp is None else timestamp
    if time is not None and not start <= time < end:
        return None
    event: dict[str, Any] = {name: _text_or_default(name, fields) for name in NULL_TEXTS}
    event["uuid"] = event["uuid"].lower()
    event["timestamp"] = to_datetime(FIRST if timestamp is None else timestamp)
    event["created_at"] = None if created_at is None else to_datetime(created_at)
    return event


def _text_or_default(name: str, fields: dict[str, Any]) -> str | None:
    """A field's text. If the field is missing, it is read as null, except that missing properties are refused by R14."""
    if name == "person_properties" and name not in fields:
        return None
    text: str | None = fields.get(name, "null" if name == "properties" else None)
    return NULL_TEXTS[name] if text is None else text


def _parse_fields(line: bytes) -> dict[str, Any]:
    """The event's fields that `EVENT_SCHEMA` has, as text or None; times in whatever form. Raises `ValueError` or `TypeError`
    if the line is not an object."""
    if LONG_INTEGER not in line.translate(DIGITS_TO_ZERO):
        try:
            return {name: _text_of_value(name, value) for name, value in _known_fields(orjson.loads(line)).items()}
        except (ValueError, TypeError):
            pass  # read by the code below, which is slower, but reads everything
    return {name: _text_of_json(name, value) for name, value in _known_fields(raw_fields(line)).items()}


def _known_fields(event: Any) -> dict[str, Any]:
    """The fields that `EVENT_SCHEMA` has, whatever the case of their names."""
    if not isinstance(event, dict):
        raise TypeError
    lower = {name.lower(): value for name, value in event.items()}
    return {name: event.get(name, lower[name]) for name in EVENT_SCHEMA.names if name in lower}


def _text_of_value(name: str, value: Any) -> Any:
    """A value parsed by orjson. Raises `TypeError` if its text is not known exactly."""
    if value is None or isinstance(value, str) or name in TIME_COLUMNS:
        return value
    if name in JSON_COLUMNS:
        return orjson.dumps(value).decode()
    raise TypeError


def _text_of_json(name: str, raw: bytes) -> str | None:
    """A JSON string's text, or any other value exactly as in the line, so that numbers keep all their digits."""
    if raw == b"null":
        return None
    if not raw.startswith(b'"'):
        return decode_json(raw)
    if name not in JSON_COLUMNS:
        return decode_text(json.loads(decode_text(raw), strict=False))
    try:
        return decode_json(json.loads(decode_json(raw), strict=False).encode("utf-8", "surrogatepass"))
    except ValueError:
        return decode_json(raw)  # not a JSON object, so R14 refuses it


def raw_fields(line: bytes) -> dict[str, bytes]:
    """Returns the values of a JSON object by name, exactly as in the line. Raises `ValueError` if it is not a whole object."""
    fields: dict[str, bytes] = {}
    depth, start, name = 0, 0, None
    for token in TOKEN.finditer(line):
        kind = token[0]
        if depth == 1 and name is None and kind == b":":
            name, start = json.loads(decode_text(line[start : token.start()])), token.end()
        elif depth == 1 and kind in (b",", b"}"):
            _add_field(fields, name, line[start : token.start()].strip())
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
    raise ValueError("not an object")


def _add_field(fields: dict[str, bytes], name: Any, value: bytes) -> None:
    if not isinstance(name, str) or not value:
        if name is None and not value and not fields:
            return  # an object without fields
        raise ValueError("not an object")
    fields[name] = value
