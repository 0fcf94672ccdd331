"""Tables in, in any order; shards out: rows with the same text in a column, whatever its case, come into one shard.

The rows are spilled, split into many small buckets by a hash. When all are there, buckets are put together into shards by the
bytes that they really have. So a shard is of a bounded size, unless a single text has more rows than that, and depends on the
rows alone, not on the order in which they came.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.tables.files import StorageError, keeping_temporary_rows

BUCKETS = 512
SPILL_BYTES = 48_000_000
"""So many bytes are held in memory before they are spilled."""

SHARD_ROWS = 40_000
SHARD_BYTES = 32_000_000
"""About the most that a shard holds, which bounds the memory of every stage: while it is worked on it is there several times
over."""


class Batch(NamedTuple):
    """A record batch of a spill file: its bucket and its rows, and those rows and bytes that count for a shard's size."""

    bucket: int
    rows: int
    counted: int
    bytes: int


@dataclass(frozen=True)
class Spilled:
    """A spill file and its record batches, in their order."""

    path: Path
    batches: tuple[Batch, ...]


@dataclass(frozen=True)
class Shard:
    """The rows of some buckets: the numbers of their record batches, by spill file."""

    pieces: tuple[tuple[Path, tuple[int, ...]], ...]
    rows: int
    schema: pa.Schema

    def read(self) -> pa.Table:
        """The rows, each column in one piece. Raises `StorageError` where rows that were spilled are gone."""
        batches = [batch for path, numbers in self.pieces for batch in _read(path, numbers)]
        rows = pa.Table.from_batches(batches, self.schema)
        if rows.num_rows != self.rows:
            raise StorageError(
                f"Of {self.rows:,} rows of a shard, only {rows.num_rows:,} are in {self.pieces[0][0].parent}: run this again."
            )
        return rows.combine_chunks()


def shuffle(tables: Iterable[pa.Table], by: str, schema: pa.Schema, folder: Path, uncounted: str | None = None) -> list[Shard]:
    """The rows of the tables (of `schema`) in shards by the text column `by`; spilled to the folder. No rows are one shard.

    Rows whose column `uncounted` is true come along, but the shards are what they would be without them.
    Raises `StorageError` where the folder cannot be written.
    """
    spilled: list[Spilled] = []
    held: list[pa.Table] = []
    numbers, size = count(), 0
    for table in tables:
        held.append(table)
        size += table.nbytes
        if size >= SPILL_BYTES:
            spilled.append(spill(pa.concat_tables(held), by, folder / f"{next(numbers):05d}.arrow", uncounted=uncounted))
            held, size = [], 0
    last = pa.concat_tables([schema.empty_table(), *held])
    fits = not spilled and len(last) <= SHARD_ROWS and _row_bytes(last).sum() <= SHARD_BYTES
    spilled.append(spill(last, by, folder / f"{next(numbers):05d}.arrow", 1 if fits else BUCKETS, uncounted))
    return shards(spilled, schema)


def spill(rows: pa.Table, by: str, path: Path, buckets: int = BUCKETS, uncounted: str | None = None) -> Spilled:
    """Writes the rows to a new file, a record batch for each bucket that has any. Raises `StorageError`.

    Nothing is compressed: that would take longer than all else that is done to a row here.
    """
    found = buckets_of(rows[by], buckets)
    order = np.argsort(found, kind="stable")
    rows, found = rows.combine_chunks().take(pa.array(order)).combine_chunks(), found[order]
    counted = np.ones(len(rows), bool) if uncounted is None else ~np.asarray(rows[uncounted])
    sizes = _row_bytes(rows) * counted
    present, starts = np.unique(found, return_index=True)
    bounds = [*starts.tolist(), len(found)]
    batches = []
    with keeping_temporary_rows(path.parent), pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        for bucket, start, end in zip(present.tolist(), bounds[:-1], bounds[1:], strict=True):
            writer.write_table(rows.slice(start, end - start))
            batches.append(Batch(bucket, end - start, int(counted[start:end].sum()), int(sizes[start:end].sum())))
    return Spilled(path, tuple(batches))


def shards(spilled: Sequence[Spilled], schema: pa.Schema) -> list[Shard]:
    """What was spilled, in buckets of the same number each, put together into shards: at least one."""
    rows, sizes = np.zeros(BUCKETS, np.int64), np.zeros(BUCKETS, np.int64)
    for file in spilled:
        for batch in file.batches:
            rows[batch.bucket] += batch.counted
            sizes[batch.bucket] += batch.bytes
    return [_shard(spilled, buckets, schema) for buckets in _grouped(rows.tolist(), sizes.tolist())]


def buckets_of(texts: pa.ChunkedArray, buckets: int = BUCKETS) -> Any:
    """The bucket of each text, a number below `buckets`: the CRC-32 of its lower case in UTF-8, which stays what it is."""
    encoded = texts.combine_chunks().dictionary_encode()
    hashed = np.fromiter((zlib.crc32(text.lower().encode()) for text in encoded.dictionary.to_pylist()), np.uint32)
    return (hashed % buckets).astype(np.uint16)[encoded.indices.to_numpy()]


def _grouped(rows: list[int], sizes: list[int]) -> Iterator[frozenset[int]]:
    """The buckets of each shard."""
    group: list[int] = []
    group_rows = group_bytes = 0
    for bucket in range(BUCKETS):
        is_full = group_rows + rows[bucket] > SHARD_ROWS or group_bytes + sizes[bucket] > SHARD_BYTES
        if rows[bucket] and group_rows and is_full:
            yield frozenset(group)
            group, group_rows, group_bytes = [], 0, 0
        group.append(bucket)
        group_rows += rows[bucket]
        group_bytes += sizes[bucket]
    yield frozenset(group)


def _shard(spilled: Sequence[Spilled], buckets: frozenset[int], schema: pa.Schema) -> Shard:
    pieces = []
    rows = 0
    for file in spilled:
        numbers = [number for number, batch in enumerate(file.batches) if batch.bucket in buckets]
        rows += sum(file.batches[number].rows for number in numbers)
        if numbers:
            pieces.append((file.path, tuple(numbers)))
    return Shard(tuple(pieces), rows, schema)


def _read(path: Path, numbers: Sequence[int]) -> Iterator[pa.RecordBatch]:
    with keeping_temporary_rows(path.parent), pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as spilled:
        yield from [spilled.get_batch(number) for number in numbers if number < spilled.num_record_batches]


def _row_bytes(rows: pa.Table) -> Any:
    """About the bytes of each row."""
    sizes = np.full(len(rows), 8 * rows.num_columns, np.int64)
    for column in rows.columns:
        if pa.types.is_string(column.type):
            sizes += pc.binary_length(column).fill_null(0).to_numpy()
    return sizes
