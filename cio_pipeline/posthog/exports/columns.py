"""Converts the columns of an exported Parquet file, whatever types they have, to those of `EVENT_SCHEMA`."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.posthog.source import EVENT_SCHEMA
from cio_pipeline.posthog.times import FIRST, LAST, time_or_none

REQUIRED = ("uuid", "event", "distinct_id", "timestamp", "properties")
OPTIONAL = ("created_at", "person_properties")
TIME_COLUMNS = ("timestamp", "created_at")
JSON_COLUMNS = ("properties", "person_properties")
NULL_TEXTS = {"uuid": "", "event": "", "distinct_id": "", "properties": "{}", "person_properties": "{}"}
"""What a null in each column of text is read as."""

TIME_TYPE = EVENT_SCHEMA.field("timestamp").type
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}
IS_BINARY = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
IS_TEXT = (pa.types.is_null, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, *IS_BINARY)


class UnreadableFile(ValueError):
    """A file is not as PostHog exports it; the message ends the sentence "this file cannot be read: ..."."""


class Column(NamedTuple):
    """A column of the file."""

    name: str
    type: pa.DataType


def find_columns(schema: pa.Schema, requires_person_properties: bool) -> dict[str, Column]:
    """Returns the file's columns, in any order and case, by their names in `EVENT_SCHEMA`. Optional ones may be missing.

    Raises `UnreadableFile` if a column is missing, occurs twice, or is of a type that cannot be converted.
    """
    found = {name: _find_column(schema, name) for name in (*REQUIRED, *OPTIONAL)}
    required = (*REQUIRED, "person_properties") if requires_person_properties else REQUIRED
    if missing := [name for name in required if found[name] is None]:
        raise UnreadableFile(f"it is not an export of events, as it has no column {', '.join(missing)}")
    columns = {name: column for name, column in found.items() if column is not None}
    for name, column in columns.items():
        if not _is_convertible(name, _decoded_type(column.type)):
            expected = "times" if name in TIME_COLUMNS else "JSON text" if name in JSON_COLUMNS else "text"
            raise UnreadableFile(f"its column {column.name} holds {str(column.type)[:60]}, not {expected}")
    return columns


def decode_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the same values without dictionary, run-end or extension encoding, in a type that Arrow can filter."""
    if pa.types.is_dictionary(column.type):
        return decode_column(column.cast(column.type.value_type))
    if pa.types.is_run_end_encoded(column.type):
        return decode_column(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], column.type.value_type))
    if isinstance(column.type, pa.BaseExtensionType):
        return decode_column(pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type))
    is_view = pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type)
    return column.cast(pa.binary()) if is_view else column


def to_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the times of a decoded column (timestamp[us, UTC]), null if there is none, or one that cannot be read.

    Times without a zone are in UTC. Times outside of the years 1 to 9999 become the first or last one in that range.
    """
    if not pa.types.is_timestamp(column.type):
        return _parse_times(column)
    numbers = column.cast(pa.int64())
    if column.type.unit == "ns":
        return _clip(pc.divide(numbers, 1000), FIRST, LAST).cast(TIME_TYPE)  # rounded towards zero
    unit = MICROSECONDS[column.type.unit]
    return pc.multiply(_clip(numbers, -(-FIRST // unit), LAST // unit), unit).cast(TIME_TYPE)


def to_texts(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Returns the texts of a decoded column (string) without nulls: see `NULL_TEXTS`.

    name: of the column. uuids are in lower case, and may come as 16 bytes.
    """
    is_binary, is_fixed_size = any(test(column.type) for test in IS_BINARY), pa.types.is_fixed_size_binary(column.type)
    if pa.types.is_null(column.type) or pa.types.is_integer(column.type):
        return column.cast(pa.string()).fill_null(NULL_TEXTS[name])
    column = column.cast(pa.binary())
    if name == "uuid" and is_binary and pc.any(pc.equal(pc.binary_length(column), 16)).as_py():
        return pc.utf8_lower(_map(column, _uuid_text, pa.string()).fill_null(""))
    if is_fixed_size:
        column = _map(column, lambda value: value.rstrip(b"\0"), pa.binary())
    try:
        texts = column.cast(pa.string())  # raises an error for invalid UTF-8
    except pa.ArrowInvalid:
        texts = _map(column, decode_json if name in JSON_COLUMNS else decode_text, pa.string())
    texts = texts.fill_null(NULL_TEXTS[name])
    return pc.utf8_lower(texts) if name == "uuid" else texts


def decode_json(value: bytes) -> str:
    """Returns JSON as text. An unpaired surrogate becomes its JSON escape. Other bytes that are not UTF-8 become `\\x..`, which
    is not valid JSON."""
    try:
        return value.decode("utf-8", "surrogatepass").encode("utf-8", "backslashreplace").decode()
    except UnicodeDecodeError:
        return value.decode("utf-8", "backslashreplace")


def decode_text(value: bytes | str) -> str:
    """Returns a name or an id as valid text: whatever is not a character, such as an unpaired surrogate, becomes U+FFFD."""
    try:
        text = value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "replace")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _find_column(schema: pa.Schema, name: str) -> Column | None:
    exact = [field for field in schema if field.name == name]
    fields = exact or [field for field in schema if field.name.lower() == name]
    if len(fields) > 1:
        raise UnreadableFile(f"it has the column {name} {len(fields)} times")
    return Column(fields[0].name, fields[0].type) if fields else None


def _is_convertible(name: str, decoded: pa.DataType) -> bool:
    is_text, is_integer = any(test(decoded) for test in IS_TEXT), pa.types.is_integer(decoded)
    if name in TIME_COLUMNS:
        return is_text or is_integer or pa.types.is_timestamp(decoded) or pa.types.is_floating(decoded)
    return is_text or (is_integer and name in ("event", "distinct_id"))


def _decoded_type(encoded: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(encoded) or pa.types.is_run_end_encoded(encoded):
        return _decoded_type(encoded.value_type)
    return _decoded_type(encoded.storage_type) if isinstance(encoded, pa.BaseExtensionType) else encoded


def _uuid_text(value: bytes) -> str:
    """A uuid as text. 16 bytes are the uuid itself, since its text is always longer."""
    return str(uuid.UUID(bytes=value)) if len(value) == 16 else decode_text(value)


def _clip(numbers: pa.ChunkedArray, first: int, last: int) -> pa.ChunkedArray:
    extremes = pc.min_max(numbers)
    if all(extreme is None or first <= extreme <= last for extreme in extremes.as_py().values()):
        return numbers
    return pc.min_element_wise(pc.max_element_wise(numbers, first, skip_nulls=False), last, skip_nulls=False)


def _parse_times(column: pa.ChunkedArray) -> pa.ChunkedArray:
    values = (value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in column.to_pylist())
    times = (time_or_none(value) for value in values)
    clipped = [None if time is None else min(max(time, FIRST), LAST) for time in times]
    return pa.chunked_array([pa.array(clipped, pa.int64()).cast(TIME_TYPE)])


def _map(column: pa.ChunkedArray, function: Callable[[bytes], bytes | str], result: pa.DataType) -> pa.ChunkedArray:
    """The function's results (of the type `result`) for the values that are not null."""
    values = (None if value is None else function(value) for value in column.to_pylist())
    return pa.chunked_array([pa.array(values, result)])
