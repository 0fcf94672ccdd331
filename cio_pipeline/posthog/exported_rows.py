"""The events in a file that PostHog exported, Parquet or JSONLines, in pieces of a bounded size.

Columns are taken by name: their order has changed, others may be added. Nothing is passed over silently: a file
with a row that has no uuid or no time is refused.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import IO, Any, NamedTuple

import orjson
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cio_pipeline.connector.jsontext import loads
from cio_pipeline.posthog.source import EVENT_SCHEMA, Window

PIECE_ROWS = 20_000
PIECE_BYTES = 8_000_000
"""A piece has at most so many rows, and fewer where they are large: this bounds the memory."""

ESSENTIAL = ("uuid", "event", "distinct_id", "timestamp", "properties")
NULL_MEANS = {"uuid": "", "event": "", "distinct_id": "", "properties": "{}", "person_properties": "{}"}


class Unreadable(ValueError):
    """A file that is not what PostHog exports; the message ends the sentence "this file cannot be read: ..."."""


class Wanted(NamedTuple):
    """Which events: `start` <= timestamp < `end`, of the listed names (none: of every name) or needed for facts (R1, R3)."""

    start: datetime
    end: datetime
    allowlist: tuple[str, ...]
    with_person: bool


def row_groups(file: pq.ParquetFile, wanted: Wanted) -> list[int]:
    """The row groups that may hold events of the window, by their statistics. Raises `Unreadable` where columns are missing."""
    schema, metadata = file.schema_arrow, file.metadata
    if missing := [name for name in _essential(wanted) if name not in schema.names]:
        raise Unreadable(f"it is no export of events, for it has no column {', '.join(missing)}")
    kind = schema.field("timestamp").type
    if not (pa.types.is_timestamp(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise Unreadable(f"its column timestamp holds {kind}, not times")
    leaf = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == "timestamp")
    groups = range(metadata.num_row_groups)
    return [group for group in groups if _may_hold(metadata.row_group(group).column(leaf).statistics, wanted)]


def read_parquet(path: str, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted events of a Parquet file, in tables of `EVENT_SCHEMA`. Raises `Unreadable`, or what Arrow raises."""
    columns = [*_essential(wanted), "created_at"]
    with pq.ParquetFile(path, buffer_size=1 << 20) as file:
        for group in row_groups(file, wanted):  # one by one: Arrow keeps some megabytes of each until an iteration ends
            for batch in file.iter_batches(_piece_rows(file.metadata), [group], columns=columns):
                yield _wanted(pa.Table.from_batches([batch]), wanted)


def read_jsonlines(file: IO[bytes], codec: str | None, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted events of a JSONLines file, in tables of `EVENT_SCHEMA`. Raises `Unreadable`, or what Arrow raises."""
    rows: list[dict[str, Any]] = []
    size = 0
    with pa.input_stream(file, compression=codec, buffer_size=1 << 20) as stream:
        for number, line in enumerate(io.BufferedReader(stream, 1 << 20), 1):
            if line.strip() and (row := _row(line, number, wanted)):
                rows.append(row)
                size += len(line)
            if len(rows) >= PIECE_ROWS or size >= PIECE_BYTES:
                yield _wanted(_table(rows, wanted), wanted)
                rows, size = [], 0
    yield _wanted(_table(rows, wanted), wanted)


def on_disk(tables: Iterable[pa.Table]) -> Window:
    """A window of these events, which are put into a temporary file first: so they are counted, and files are read but once."""
    file = tempfile.TemporaryFile(prefix="cio_pipeline_")  # noqa: SIM115 - it is closed when its rows have been read
    rows = 0
    with pq.ParquetWriter(file, EVENT_SCHEMA, compression="lz4") as writer:
        for piece in _pieces(tables):
            writer.write_table(piece)
            rows += len(piece)
    return Window(rows, _frames(file))


def _pieces(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in pieces that are not small: late events come by ones and twos."""
    piece = EVENT_SCHEMA.empty_table()
    for table in tables:
        piece = pa.concat_tables([piece, table])
        if len(piece) >= PIECE_ROWS or piece.nbytes >= PIECE_BYTES:
            yield piece
            piece = EVENT_SCHEMA.empty_table()
    if len(piece):
        yield piece


def _essential(wanted: Wanted) -> tuple[str, ...]:
    return (*ESSENTIAL, "person_properties") if wanted.with_person else ESSENTIAL


def _frames(file: IO[bytes]) -> Iterator[pd.DataFrame]:
    with file, pq.ParquetFile(file) as spool:
        for piece in range(spool.num_row_groups):
            yield spool.read_row_group(piece).to_pandas()


def _piece_rows(metadata: pq.FileMetaData) -> int:
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    mean = max(1, size // max(1, metadata.num_rows))
    return max(1, min(PIECE_ROWS, PIECE_BYTES // mean))


def _may_hold(statistics: Any, wanted: Wanted) -> bool:
    if statistics is None or not statistics.has_min_max or not isinstance(statistics.min, datetime):
        return True
    return _utc(statistics.min) < wanted.end and _utc(statistics.max) >= wanted.start


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def _wanted(table: pa.Table, wanted: Wanted) -> pa.Table:
    """The wanted rows, as `EVENT_SCHEMA` says."""
    if table["timestamp"].null_count:
        raise Unreadable("it has an event without a timestamp")
    times = table["timestamp"].cast(EVENT_SCHEMA.field("timestamp").type, safe=False)
    table = table.filter(pc.and_(pc.greater_equal(times, wanted.start), pc.less(times, wanted.end)))
    table = pa.table([_column(table, field) for field in EVENT_SCHEMA], schema=EVENT_SCHEMA)
    if pc.any(pc.equal(table["uuid"], "")).as_py():
        raise Unreadable("it has an event without a uuid")
    if not wanted.allowlist:
        return table
    listed = pc.is_in(table["event"], pa.array([*wanted.allowlist, "$identify"]))
    teaches = pc.match_substring(table["person_properties" if wanted.with_person else "properties"], '"email"')
    return table.filter(pc.or_(listed, teaches))


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.chunked_array([pa.nulls(len(table), field.type)])
    column = table[field.name].cast(field.type, safe=False)
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:  # not UTF-8: bytes that are none are written as escapes
        texts = (value and value.decode("utf-8", "backslashreplace") for value in column.cast(pa.binary()).to_pylist())
        column = pa.chunked_array([pa.array(texts, pa.string())])
    if field.name in NULL_MEANS:
        column = column.fill_null(NULL_MEANS[field.name])
    return pc.utf8_lower(column) if field.name == "uuid" else column


def _row(line: bytes, number: int, wanted: Wanted) -> dict[str, Any] | None:
    """The line's event; None where its time lies outside the window."""
    try:
        event = loads(line)
        missing = [name for name in _essential(wanted) if name not in event]
        if not missing:
            return _event(event, wanted)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise Unreadable(f"its line {number} is no event") from None
    raise Unreadable(f"its line {number} is no event, for it has no {', '.join(missing)}")


def _event(event: dict[str, Any], wanted: Wanted) -> dict[str, Any] | None:
    at = _time(event["timestamp"])
    if not wanted.start <= at < wanted.end:
        return None
    texts = {name: _text(event[name]) for name in ("uuid", "event", "distinct_id")}
    objects = {name: _json_text(event[name]) for name in _essential(wanted) if name.endswith("properties")}
    return texts | objects | {"timestamp": at, "created_at": _time(event.get("created_at") or event["timestamp"])}


def _table(rows: list[dict[str, Any]], wanted: Wanted) -> pa.Table:
    names = (*_essential(wanted), "created_at")
    return pa.Table.from_pylist(rows, schema=pa.schema([EVENT_SCHEMA.field(name) for name in names]))


def _time(text: str) -> datetime:
    return _utc(datetime.fromisoformat(text.replace("Z", "+00:00")))


def _text(value: Any) -> str | None:
    """Half a surrogate pair, which neither Parquet nor UTF-8 holds, is written as its escape."""
    return None if value is None else str(value).encode("utf-8", "backslashreplace").decode()


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return _text(value)
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # integers beyond 64 bits, half a surrogate pair, deep nesting
        return json.dumps(value)
