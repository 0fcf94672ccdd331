"""The columns of an exported Parquet file, of any type, converted to `EVENT_SCHEMA` or refused by name."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.posthog.exports.times import FIRST, LAST, time_or_none
from cio_pipeline.posthog.source import EVENT_SCHEMA

ESSENTIAL = ("uuid", "event", "distinct_id", "timestamp", "properties")
OPTIONAL = ("created_at", "person_properties")
JSON = ("properties", "person_properties")
NULL_MEANS = {"uuid": "", "event": "", "distinct_id": "", "properties": "{}", "person_properties": "{}"}
TIME = EVENT_SCHEMA.field("timestamp").type
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


class Unreadable(ValueError):
    """A file that is not what PostHog exports; the message ends the sentence "this file cannot be read: ..."."""


class Column(NamedTuple):
    """A column of the file."""

    name: str
    type: pa.DataType


def columns_of(schema: pa.Schema, needs_person: bool) -> dict[str, Column]:
    """The file's columns by their names in `EVENT_SCHEMA`, in any order and case. Optional ones may be missing.

    Raises `Unreadable` if a required one is missing, there twice, or of an unknown type.
    """
    by_name = {name: _named(schema, name) for name in (*ESSENTIAL, *OPTIONAL)}
    needed = (*ESSENTIAL, "person_properties") if needs_person else ESSENTIAL
    if missing := [name for name in needed if by_name[name] is None]:
        raise Unreadable(f"it is not an export of events, for it has no column {', '.join(missing)}")
    columns = {name: column for name, column in by_name.items() if column is not None}
    for name, column in columns.items():
        if not _is_understood(name, _plain_type(column.type)):
            wanted = "times" if name in ("timestamp", "created_at") else "JSON text" if name in JSON else "text"
            raise Unreadable(f"its column {column.name} holds {str(column.type)[:60]}, not {wanted}")
    return columns


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column's values as they are stored, of a type that Arrow can filter."""
    if pa.types.is_dictionary(column.type):
        return plain(column.cast(column.type.value_type))
    if pa.types.is_run_end_encoded(column.type):
        return plain(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], column.type.value_type))
    if isinstance(column.type, pa.BaseExtensionType):
        return plain(pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type))
    is_view = pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type)
    return column.cast(pa.binary()) if is_view else column


def times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The times of a plain column in UTC, in microseconds; null if there is none, or one that cannot be read.

    Times without a zone are in UTC. Times beyond the first or last year are in that year.
    """
    if not pa.types.is_timestamp(column.type):
        return _parsed(column)
    numbers, unit = column.cast(pa.int64()), MICROSECONDS.get(column.type.unit)
    if unit is None:
        numbers = pc.divide(numbers, 1000)  # nanoseconds: the fraction of a microsecond is cut
    else:
        numbers = pc.multiply(_between(numbers, -(-FIRST // unit), LAST // unit), unit)
    return _between(numbers, FIRST, LAST).cast(TIME)


def texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The texts of a plain column in UTF-8, with nulls as what they mean there; uuids, also as 16 bytes, in lower case."""
    are_bytes, are_fixed = any(test(column.type) for test in _BINARY), pa.types.is_fixed_size_binary(column.type)
    if pa.types.is_null(column.type) or pa.types.is_integer(column.type):
        return column.cast(pa.string()).fill_null(NULL_MEANS[name])
    column = column.cast(pa.binary())
    if name == "uuid" and are_bytes and pc.any(pc.equal(pc.binary_length(column), 16)).as_py():
        return pc.utf8_lower(_converted(column, _uuid_text).fill_null(""))
    if are_fixed:
        column = _converted(column, lambda value: value.rstrip(b"\0"), pa.binary())
    try:
        converted = column.cast(pa.string())  # refuses what is no UTF-8
    except pa.ArrowInvalid:
        converted = _converted(column, json_text if name in JSON else plain_text)
    converted = converted.fill_null(NULL_MEANS[name])
    return pc.utf8_lower(converted) if name == "uuid" else converted


def json_text(value: bytes) -> str:
    """JSON that is not valid UTF-8: an unpaired surrogate is written as its escape, and so are other bytes, so that it is not
    JSON."""
    try:
        return value.decode("utf-8", "surrogatepass").encode("utf-8", "backslashreplace").decode()
    except UnicodeDecodeError:
        return value.decode("utf-8", "backslashreplace")


def plain_text(value: Any) -> str:
    """A name or an id, bytes or text, in UTF-8: what is not a character, such as an unpaired surrogate, becomes U+FFFD."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            return value.decode("utf-8", "replace")
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _named(schema: pa.Schema, name: str) -> Column | None:
    exactly = [field for field in schema if field.name == name]
    fields = exactly or [field for field in schema if field.name.lower() == name]
    if len(fields) > 1:
        raise Unreadable(f"it has the column {name} {len(fields)} times")
    return Column(fields[0].name, fields[0].type) if fields else None


def _is_understood(name: str, kind: pa.DataType) -> bool:
    is_text = pa.types.is_null(kind) or any(
        test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, *_BINARY)
    )
    if name in ("timestamp", "created_at"):
        return is_text or pa.types.is_timestamp(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return is_text or (name in ("event", "distinct_id") and pa.types.is_integer(kind))


_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)


def _uuid_text(value: bytes) -> str:
    """A uuid as text. 16 bytes are the uuid itself, as no text of one is that short."""
    return str(uuid.UUID(bytes=value)) if len(value) == 16 else plain_text(value)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    return _plain_type(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _between(numbers: pa.ChunkedArray, first: int, last: int) -> pa.ChunkedArray:
    return pc.min_element_wise(pc.max_element_wise(numbers, first, skip_nulls=False), last, skip_nulls=False)


def _parsed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    values = (value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in column.to_pylist())
    found = (time_or_none(value) for value in values)
    numbers = [None if at is None else min(max(at, FIRST), LAST) for at in found]
    return pa.chunked_array([pa.array(numbers, pa.int64()).cast(TIME)])


def _converted(column: pa.ChunkedArray, convert: Callable[[bytes], Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    values = (None if value is None else convert(value) for value in column.to_pylist())
    return pa.chunked_array([pa.array(values, kind or pa.string())])
