"""Reads the events in a Parquet file that PostHog exported, in pieces of limited size.

Columns are found by name, because PostHog has changed their order and may add others. No row is skipped silently: an event
whose time cannot be read belongs to the window in which PostHog ingested it or, if that is unknown too, to every window; its
timestamp is then in the year 1, which R14 refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cio_pipeline.posthog.exports.columns import Column, UnreadableFile, decode_column, find_columns, to_texts, to_times
from cio_pipeline.posthog.exports.event_filter import EventFilter
from cio_pipeline.posthog.exports.limits import BOMB_BYTES, BOMB_RATIO, MAX_EVENT_BYTES, PIECE_BYTES, PIECE_ROWS
from cio_pipeline.posthog.source import EVENT_SCHEMA
from cio_pipeline.posthog.times import FIRST, to_datetime

BATCH_BYTES = 32_000_000
"""The most memory for a batch of rows, supposing that each row has the longest text in its column's dictionary."""


def read_parquet(path: str, event_filter: EventFilter) -> Iterator[pa.Table]:
    """Yields the file's events that the filter selects, in tables of `EVENT_SCHEMA`.

    Raises `UnreadableFile`, and `ArrowException` or `OSError` if the file is damaged.
    """
    with pq.ParquetFile(path, buffer_size=1 << 20, page_checksum_verification=True) as file:
        columns = find_columns(file.schema_arrow, event_filter.requires_person_properties)
        if not event_filter.reads_person_properties:
            columns.pop("person_properties", None)
        names = [column.name for column in columns.values()]
        for group in matching_row_groups(file, event_filter):  # one by one: Arrow keeps megabytes of each while iterating
            rows = 0
            for batch in file.iter_batches(_batch_rows(path, file, group, columns), [group], columns=names):
                rows += len(batch)
                yield event_filter.select(_events_in_window(pa.Table.from_batches([batch]), columns, event_filter))
            if rows != file.metadata.row_group(group).num_rows:
                raise UnreadableFile(f"it gave {rows:,} rows of {file.metadata.row_group(group).num_rows:,}")


def matching_row_groups(file: pq.ParquetFile, event_filter: EventFilter) -> list[int]:
    """Returns the numbers of the row groups that may have events of the filter's time window, according to their statistics.

    Raises `UnreadableFile` if the file does not have the columns of events.
    """
    metadata = file.metadata
    timestamp = find_columns(file.schema_arrow, event_filter.requires_person_properties)["timestamp"]
    groups = range(metadata.num_row_groups)
    if not pa.types.is_timestamp(timestamp.type):
        return list(groups)
    index = _column_index(metadata, timestamp)
    return [group for group in groups if _may_match(metadata.row_group(group).column(index).statistics, event_filter)]


def _may_match(statistics: pq.Statistics | None, event_filter: EventFilter) -> bool:
    """Whether a row group may have events of the time window. Events without a time may belong to any."""
    try:
        if statistics is None or statistics.null_count != 0 or not isinstance(statistics.min, datetime):
            return True
        return _utc(statistics.min) < event_filter.end and _utc(statistics.max) >= event_filter.start
    except (ValueError, OverflowError):  # a year that `datetime` does not support
        return True


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _column_index(metadata: pq.FileMetaData, column: Column) -> int:
    return next(index for index in range(metadata.num_columns) if metadata.schema.column(index).path == column.name)


def _events_in_window(table: pa.Table, columns: dict[str, Column], event_filter: EventFilter) -> pa.Table:
    """The rows of the time window, converted to `EVENT_SCHEMA`."""
    start, end = event_filter.start, event_filter.end
    table = pa.table({name: decode_column(table[column.name]) for name, column in columns.items()})
    timestamp = to_times(table["timestamp"])
    created_at = pc.coalesce(to_times(table["created_at"]), timestamp) if "created_at" in columns else timestamp
    time = pc.coalesce(timestamp, created_at, pa.scalar(start, timestamp.type))
    is_in_window = pc.and_(pc.greater_equal(time, start), pc.less(time, end))
    known = pc.coalesce(timestamp, pa.scalar(to_datetime(FIRST), timestamp.type))
    converted: dict[str, pa.ChunkedArray] = {"timestamp": known, "created_at": created_at}
    if not pc.all(is_in_window).as_py():
        table = table.filter(is_in_window)
        converted = {name: column.filter(is_in_window) for name, column in converted.items()}
    for name, column in columns.items():
        if name not in converted:
            converted[name] = to_texts(table[name], name)
            _check_sizes(converted[name], column)
    nulls = pa.nulls(len(table), pa.string())
    return pa.table([converted.get(name, nulls) for name in EVENT_SCHEMA.names], schema=EVENT_SCHEMA)


def _check_sizes(texts: pa.ChunkedArray, column: Column) -> None:
    if (pc.max(pc.binary_length(texts)).as_py() or 0) > MAX_EVENT_BYTES:
        raise _too_large(column.name)


def _too_large(name: str) -> UnreadableFile:
    return UnreadableFile(f"its column {name} has a value of more than {MAX_EVENT_BYTES:,} bytes, which no event has")


def _batch_rows(path: str, file: pq.ParquetFile, group: int, columns: dict[str, Column]) -> int:
    """How many rows of a row group to read at once. Raises `UnreadableFile` if it decompresses to more than real events do."""
    metadata = file.metadata
    chunks = {column.name: metadata.row_group(group).column(_column_index(metadata, column)) for column in columns.values()}
    rows = max(1, metadata.row_group(group).num_rows)
    for name, chunk in chunks.items():
        if chunk.total_uncompressed_size // rows > MAX_EVENT_BYTES:
            raise _too_large(name)
    size = sum(chunk.total_uncompressed_size for chunk in chunks.values())
    compressed = sum(chunk.total_compressed_size for chunk in chunks.values())
    if size > BOMB_BYTES and size > BOMB_RATIO * compressed:
        raise UnreadableFile(f"{compressed:,} bytes of it grow to {size:,}, which real events do not")
    most = max(1, min(PIECE_ROWS, PIECE_BYTES // max(1, size // rows)))
    with_dictionary = [
        name for name, chunk in chunks.items() if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"
    ]
    if not with_dictionary or most * size <= BATCH_BYTES:
        return most
    return max(1, min(most, BATCH_BYTES // max(1, _largest_row(path, group, with_dictionary))))


def _largest_row(path: str, group: int, names: list[str]) -> int:
    """The size in bytes of a row that has the longest text of each column's dictionary."""
    with pq.ParquetFile(path, buffer_size=1 << 20, read_dictionary=names) as file:
        batch = next(file.iter_batches(1, [group], columns=names))
    dictionaries = (batch[name].dictionary for name in names if hasattr(batch[name], "dictionary"))
    return sum(pc.max(pc.binary_length(dictionary)).as_py() or 0 for dictionary in dictionaries)
