"""Divides rows into shards so that rows with the same text in a column, in any case, are in the same shard.

The rows are spilled to files, divided by a hash into many small buckets. Once all rows are there, buckets are combined into
shards by their actual size. So the size of a shard is limited, unless a single text has more rows than that, and the shards
depend only on the rows, not on their order.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.rules.columns import Integers
from cio_pipeline.tables.files import StorageError, temporary_file_errors

BUCKETS = 512
SPILL_BYTES = 24_000_000
"""How many bytes are held in memory before a thread spills them, while the next ones are read."""

SHARD_ROWS = 40_000
SHARD_BYTES = 32_000_000
"""About the most that a shard holds. This limits the memory of every step, which holds a shard several times over."""


@dataclass(frozen=True)
class Spilled:
    """A spill file, whose rows are in the order of their buckets.

    starts: the first row of each bucket, and the end of the last; rows and bytes: of each bucket, as far as they count for a
    shard's size.
    """

    path: Path
    starts: Integers
    rows: Integers
    bytes: Integers


class Piece(NamedTuple):
    """Consecutive rows of a spill file."""

    path: Path
    start: int
    rows: int

    def read(self) -> pa.Table:
        """Returns the rows, or as many of them as the file has, memory-mapped. Raises `StorageError`."""
        with temporary_file_errors(self.path.parent), pa.memory_map(str(self.path)) as file, pa.ipc.open_file(file) as spilled:
            rows: pa.Table = spilled.read_all().slice(self.start, self.rows)
            return rows


@dataclass(frozen=True)
class Shard:
    """The rows of consecutive buckets: a piece of each spill file that has any."""

    pieces: tuple[Piece, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(piece.rows for piece in self.pieces)

    def read(self) -> pa.Table:
        """Returns the rows. Raises `StorageError` if any are missing.

        They are copied file by file: of a mapped file, far more than these rows would stay in memory until all are read.
        """
        copied = pa.BufferOutputStream()
        with pa.ipc.new_stream(copied, self.schema) as stream:
            for piece in self.pieces:
                stream.write_table(piece.read())
        rows = pa.ipc.open_stream(copied.getvalue()).read_all()
        if len(rows) != self.rows:
            raise StorageError(
                f"Of {self.rows:,} rows of a shard, only {len(rows):,} are in {self.pieces[0].path.parent}: run this again."
            )
        return rows


def shuffle(tables: Iterable[pa.Table], by: str, schema: pa.Schema, folder: Path, uncounted: str | None = None) -> list[Shard]:
    """Returns the rows of the tables in shards by the text column `by`, spilled to the folder. There is at least one shard,
    even if empty.

    schema: of the tables; uncounted: a column that is true for rows that do not count for the shards' sizes. Raises
    `StorageError` if the folder cannot be written.
    """
    spilling: list[Future[Spilled]] = []
    held: list[pa.Table] = []
    paths, size = (folder / f"{number:05d}.arrow" for number in count()), 0
    with ThreadPoolExecutor(1) as thread:
        for table in tables:
            held.append(table)
            size += table.nbytes
            if size >= SPILL_BYTES:
                if spilling:
                    spilling[-1].result()
                spilling.append(thread.submit(spill, pa.concat_tables(held), by, next(paths), uncounted=uncounted))
                held, size = [], 0
    spilled = [done.result() for done in spilling]
    last = pa.concat_tables([schema.empty_table(), *held])
    fits = not spilled and len(last) <= SHARD_ROWS and _row_bytes(last).sum() <= SHARD_BYTES
    spilled.append(spill(last, by, next(paths), 1 if fits else BUCKETS, uncounted))
    return shards(spilled, schema)


def spill(rows: pa.Table, by: str, path: Path, buckets: int = BUCKETS, uncounted: str | None = None) -> Spilled:
    """Writes the rows to a new file, in the order of their buckets. Raises `StorageError`.

    Nothing is compressed, as that would take longer than everything else here.
    """
    bucket_of_row = buckets_of(rows[by], buckets)
    counted = np.ones(len(rows), bool) if uncounted is None else ~np.asarray(rows[uncounted])
    sizes = np.bincount(bucket_of_row, _row_bytes(rows) * counted, BUCKETS).astype(np.int64)
    order = np.argsort(bucket_of_row, kind="stable")
    rows = rows.take(pa.array(order))
    with temporary_file_errors(path.parent), pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)
    starts = np.searchsorted(bucket_of_row[order], np.arange(BUCKETS + 1))
    return Spilled(path, starts, np.bincount(bucket_of_row[counted], minlength=BUCKETS), sizes)


def shards(spilled: Sequence[Spilled], schema: pa.Schema) -> list[Shard]:
    """Combines spill files, all with the same number of buckets, into shards: at least one."""
    rows, sizes = np.sum([file.rows for file in spilled], 0), np.sum([file.bytes for file in spilled], 0)
    combined = []
    for first, end in _grouped(rows.tolist(), sizes.tolist()):
        pieces = (Piece(file.path, int(file.starts[first]), int(file.starts[end] - file.starts[first])) for file in spilled)
        combined.append(Shard(tuple(piece for piece in pieces if piece.rows), schema))
    return combined


def buckets_of(texts: pa.ChunkedArray, buckets: int = BUCKETS) -> Integers:
    """Returns the bucket of each text, a number below `buckets`, by the CRC-32 of the text in lower case, which no library's
    update changes."""
    encoded = texts.combine_chunks().dictionary_encode()
    hashed = np.fromiter((zlib.crc32(text.lower().encode()) for text in encoded.dictionary.to_pylist()), np.uint32)
    return (hashed % buckets).astype(np.uint16)[encoded.indices.to_numpy()]


def _grouped(rows: list[int], sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Yields the first bucket of each shard, and the one after its last."""
    first = group_rows = group_bytes = 0
    for bucket in range(BUCKETS):
        is_full = group_rows + rows[bucket] > SHARD_ROWS or group_bytes + sizes[bucket] > SHARD_BYTES
        if rows[bucket] and group_rows and is_full:
            yield first, bucket
            first, group_rows, group_bytes = bucket, 0, 0
        group_rows += rows[bucket]
        group_bytes += sizes[bucket]
    yield first, BUCKETS


def _row_bytes(rows: pa.Table) -> Integers:
    """Returns the approximate size of each row in bytes."""
    sizes = np.full(len(rows), 8 * rows.num_columns, np.int64)
    for column in rows.columns:
        if pa.types.is_string(column.type):
            sizes += pc.binary_length(column).fill_null(0).to_numpy()
    return sizes
