"""The events in a file that PostHog exported, Parquet or JSONLines, in pieces of limited size.

Columns are found by name, as their order has changed and others may be added. Nothing is skipped silently: an event whose time
cannot be read belongs to the time when PostHog ingested it or, without that, to every window; its own time is then the year 1,
which R14 refuses. If none of several events has a uuid, all of them are refused, as the files must be at fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cio_pipeline.posthog.exports.columns import JSON, Column, Unreadable, columns_of, plain, texts, times
from cio_pipeline.posthog.exports.lines import BOMB_BYTES, BOMB_RATIO, LINE_BYTES, event_in, lines
from cio_pipeline.posthog.exports.times import FIRST, MICROSECOND, moment
from cio_pipeline.posthog.source import EVENT_SCHEMA, EventStream, NotExtracted
from cio_pipeline.rules.dropped_set import AttributesFrom, columns_with_emails, reaches_back
from cio_pipeline.rules.values import EPOCH

__all__ = ["Unreadable", "Wanted", "read_jsonlines", "read_parquet", "row_groups", "window_of"]

PIECE_ROWS = 20_000
PIECE_BYTES = 8_000_000
"""A piece has at most so many rows, and fewer if they are large: this bounds the memory."""

BATCH_BYTES = 32_000_000
"""What a batch of Parquet rows may need at most, if each has the longest text of its column's dictionary."""

UUID = r"^(urn:uuid:|\{)?[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\}?$"
EMAIL = r'"email"|\\u00'
"""What the text of properties contains that may give an email (R1); names may have escapes in them."""


class Wanted(NamedTuple):
    """Which events are wanted: `start` <= timestamp < `end`, and one of these names (if empty, any) or needed by R1 (R3).

    `person` needs the person properties; `auto` uses them if a file has them and `$set` may have been dropped.
    """

    start: datetime
    end: datetime
    allowlist: tuple[str, ...]
    attributes_from: AttributesFrom

    @property
    def needs_person(self) -> bool:
        """Whether a file without the person properties is of no use."""
        return self.attributes_from == "person"

    @property
    def reads_person(self) -> bool:
        """Whether the person properties are read if a file has them: with `auto`, if the window reaches back (R20)."""
        looks = self.attributes_from == "auto" and reaches_back(self.start, datetime.now(UTC))
        return self.needs_person or looks or bool(self.allowlist)


def row_groups(file: pq.ParquetFile, wanted: Wanted) -> list[int]:
    """The row groups that may have events of the window, by their statistics. Raises `Unreadable` if columns are
    unusable."""
    metadata, at = file.metadata, columns_of(file.schema_arrow, wanted.needs_person)["timestamp"]
    if not pa.types.is_timestamp(at.type):
        return list(range(metadata.num_row_groups))
    leaf = _leaf(metadata, at)
    groups = range(metadata.num_row_groups)
    return [group for group in groups if _may_hold(metadata.row_group(group).column(leaf).statistics, wanted)]


def read_parquet(path: str, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted events of a Parquet file, in tables of `EVENT_SCHEMA`. Raises `Unreadable`, or what Arrow raises."""
    with pq.ParquetFile(path, buffer_size=1 << 20, page_checksum_verification=True) as file:
        columns = columns_of(file.schema_arrow, wanted.needs_person)
        if not wanted.reads_person:
            columns.pop("person_properties", None)
        names = [column.name for column in columns.values()]
        for group in row_groups(file, wanted):  # one by one: Arrow keeps some megabytes of each until an iteration ends
            rows = 0
            for batch in file.iter_batches(_batch_rows(path, file, group, columns), [group], columns=names):
                rows += len(batch)
                yield _wanted(_events(pa.Table.from_batches([batch]), columns, wanted), wanted)
            if rows != file.metadata.row_group(group).num_rows:
                raise Unreadable(f"it gave {rows:,} rows of {file.metadata.row_group(group).num_rows:,}")


def read_jsonlines(file: IO[bytes], codec: str | None, wanted: Wanted) -> Iterator[pa.Table]:
    """The wanted events of a JSONLines file, in tables of `EVENT_SCHEMA`. Raises `Unreadable`, or what Arrow raises."""
    start, end = ((time - EPOCH) // MICROSECOND for time in (wanted.start, wanted.end))
    rows: list[dict[str, Any]] = []
    size = 0
    for number, line in lines(file, codec):
        if row := event_in(line, number, start, end, wanted.needs_person):
            rows.append(row if wanted.reads_person else {**row, "person_properties": None})
            size += len(line)
        if len(rows) >= PIECE_ROWS or size >= PIECE_BYTES:
            yield _wanted(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA), wanted)
            rows, size = [], 0
    yield _wanted(pa.Table.from_pylist(rows, schema=EVENT_SCHEMA), wanted)


def window_of(tables: Iterable[pa.Table], fingerprint: str | None = None) -> EventStream:
    """A window of these events, which are read as its frames are taken.

    Its frames raise `NotExtracted` at the end if none of several events has a uuid and a time.
    """
    return EventStream(None, _pieces(_usable(tables)), fingerprint=fingerprint)


def _events(table: pa.Table, columns: dict[str, Column], wanted: Wanted) -> pa.Table:
    """The rows of the window, as `EVENT_SCHEMA`."""
    table = pa.table({name: plain(table[column.name]) for name, column in columns.items()})
    at = times(table["timestamp"])
    created = pc.coalesce(times(table["created_at"]), at) if "created_at" in columns else at
    belongs = pc.coalesce(at, created, pa.scalar(wanted.start, at.type))
    inside = pc.and_(pc.greater_equal(belongs, wanted.start), pc.less(belongs, wanted.end))
    known = pc.coalesce(at, pa.scalar(moment(FIRST), at.type))
    columns_read: dict[str, Any] = {"timestamp": known, "created_at": created}
    if not pc.all(inside).as_py():
        table, columns_read = table.filter(inside), {name: column.filter(inside) for name, column in columns_read.items()}
    for name, column in columns.items():
        if name not in columns_read:
            columns_read[name] = _bounded(texts(table[name], name), column)
    nulls = pa.nulls(len(table), pa.string())
    return pa.table([columns_read.get(name, nulls) for name in EVENT_SCHEMA.names], schema=EVENT_SCHEMA)


def _bounded(values: pa.ChunkedArray, column: Column) -> pa.ChunkedArray:
    if (pc.max(pc.binary_length(values)).as_py() or 0) > LINE_BYTES:
        raise Unreadable(f"its column {column.name} has a value of more than {LINE_BYTES:,} bytes, and no event has")
    return values


def _wanted(events: pa.Table, wanted: Wanted) -> pa.Table:
    """The events that the settings need."""
    if wanted.allowlist:
        needed = pc.is_in(events["event"], pa.array([*wanted.allowlist, "$identify"]))
        by = JSON if wanted.attributes_from == "auto" else columns_with_emails(wanted.attributes_from, wanted.start)
        for name in by:
            needed = pc.or_(needed, pc.match_substring_regex(events[name], EMAIL).fill_null(False))
        events = events.filter(needed)
    if wanted.attributes_from != "set":
        return events
    at = EVENT_SCHEMA.names.index("person_properties")
    return events.set_column(at, EVENT_SCHEMA.field(at), pa.nulls(len(events), pa.string()))


def _usable(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same events. Raises `NotExtracted` at the end if none of several has a uuid and a time: R14 refuses single
    events, but if all are like that, the files are at fault."""
    events, has_any = 0, False
    for table in tables:
        events += len(table)
        has_any = has_any or _has_usable(table)
        yield table
    if events > 1 and not has_any:
        raise NotExtracted(
            f"None of {events:,} events in the export's files has a uuid and a time: are they as PostHog writes them?"
        )


def _has_usable(events: pa.Table) -> bool:
    has_uuid, has_time = pc.match_substring_regex(events["uuid"], UUID), pc.greater_equal(events["timestamp"], EPOCH)
    return bool(pc.any(pc.and_(has_uuid, has_time)).as_py())


def _batch_rows(path: str, file: pq.ParquetFile, group: int, columns: dict[str, Column]) -> int:
    """Returns how many rows of a row group to read at once. Raises `Unreadable` if it decompresses to more than real events
    do."""
    metadata = file.metadata
    chunks = {column.name: metadata.row_group(group).column(_leaf(metadata, column)) for column in columns.values()}
    rows = max(1, metadata.row_group(group).num_rows)
    for name, chunk in chunks.items():
        if chunk.total_uncompressed_size // rows > LINE_BYTES:
            raise Unreadable(f"its column {name} has a value of more than {LINE_BYTES:,} bytes, and no event has")
    size, packed = (sum(getattr(c, f"total_{kind}_size") for c in chunks.values()) for kind in ("uncompressed", "compressed"))
    if size > BOMB_BYTES and size > BOMB_RATIO * packed:
        raise Unreadable(f"{packed:,} bytes of it grow to {size:,}, as no real events do")
    most = max(1, min(PIECE_ROWS, PIECE_BYTES // max(1, size // rows)))
    repeated = [name for name, chunk in chunks.items() if chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"]
    if not repeated or most * size <= BATCH_BYTES:
        return most
    return max(1, min(most, BATCH_BYTES // max(1, _longest(path, group, repeated))))


def _longest(path: str, group: int, names: list[str]) -> int:
    """The size in bytes of a row with the longest text of each column's dictionary."""
    with pq.ParquetFile(path, buffer_size=1 << 20, read_dictionary=names) as file:
        batch = next(file.iter_batches(1, [group], columns=names))
    lengths = (pc.max(pc.binary_length(batch[name].dictionary)).as_py() for name in names if hasattr(batch[name], "dictionary"))
    return sum(length or 0 for length in lengths)


def _leaf(metadata: pq.FileMetaData, column: Column) -> int:
    return next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column.name)


def _pieces(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same rows in larger pieces, as late events come by ones and twos."""
    piece: list[pa.Table] = []
    rows = size = 0
    for table in filter(len, tables):
        piece.append(table)
        rows, size = rows + len(table), size + table.nbytes
        if rows >= PIECE_ROWS or size >= PIECE_BYTES:
            yield pa.concat_tables(piece)
            piece, rows, size = [], 0, 0
    if rows:
        yield pa.concat_tables(piece)


def _may_hold(statistics: Any, wanted: Wanted) -> bool:
    """Whether a row group may have events of the window. Events without a time may belong to any."""
    try:
        if statistics is None or statistics.null_count != 0 or not isinstance(statistics.min, datetime):
            return True
        return _utc(statistics.min) < wanted.end and _utc(statistics.max) >= wanted.start
    except (ValueError, OverflowError):  # years that no datetime has
        return True


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)
