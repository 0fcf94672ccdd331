"""Tables in, in any order; shards out: rows with the same text in a column, whatever its case, come into one shard.

The rows are spilled, split into many small buckets by a hash. When all are there, buckets are put together into shards by the
bytes that they really have. So a shard is of a bounded size, unless a single text has more rows than that, and depends on the
rows alone, not on the order in which they came.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.tables.files import StorageError, keeping_temporary_rows

BUCKETS = 512
SPILL_BYTES = 24_000_000
"""So many bytes are held in memory before they are spilled, by a thread, while the next are read."""

SHARD_ROWS = 40_000
SHARD_BYTES = 32_000_000
"""About the most that a shard holds, which bounds the memory of every stage: while it is worked on it is there several times
over."""


@dataclass(frozen=True)
class Spilled:
    """A spill file, whose rows lie in the order of their buckets; of each bucket where it starts (and, last, where all end),
    and the rows and bytes that count for a shard's size: numpy arrays of whole numbers."""

    path: Path
    starts: Any
    rows: Any
    bytes: Any


class Piece(NamedTuple):
    """Rows of a spill file that lie next to each other."""

    path: Path
    start: int
    rows: int

    def read(self) -> pa.Table:
        """The rows, or as many as are there; they stay in the file until they are used. Raises `StorageError`."""
        with keeping_temporary_rows(self.path.parent), pa.memory_map(str(self.path)) as file, pa.ipc.open_file(file) as spilled:
            rows: pa.Table = spilled.read_all().slice(self.start, self.rows)
            return rows


@dataclass(frozen=True)
class Shard:
    """The rows of buckets that follow each other: a piece of each spill file that has any."""

    pieces: tuple[Piece, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(piece.rows for piece in self.pieces)

    def read(self) -> pa.Table:
        """The rows, which stay in the files until they are used. Raises `StorageError` where what was spilled is gone."""
        found = pa.concat_tables([self.schema.empty_table(), *(piece.read() for piece in self.pieces)])
        if len(found) != self.rows:
            raise StorageError(
                f"Of {self.rows:,} rows of a shard, only {len(found):,} are in {self.pieces[0].path.parent}: run this again."
            )
        return found


def shuffle(tables: Iterable[pa.Table], by: str, schema: pa.Schema, folder: Path, uncounted: str | None = None) -> list[Shard]:
    """The rows of the tables (of `schema`) in shards by the text column `by`; spilled to the folder. No rows are one shard.

    Rows whose column `uncounted` is true come along, but the shards are what they would be without them.
    Raises `StorageError` where the folder cannot be written.
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

    Nothing is compressed: that would take longer than all else that is done to a row here.
    """
    found = buckets_of(rows[by], buckets)
    counted = np.ones(len(rows), bool) if uncounted is None else ~np.asarray(rows[uncounted])
    sizes = np.bincount(found, _row_bytes(rows) * counted, BUCKETS).astype(np.int64)
    order = np.argsort(found, kind="stable")
    rows = rows.take(pa.array(order))
    with keeping_temporary_rows(path.parent), pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows)
    starts = np.searchsorted(found[order], np.arange(BUCKETS + 1))
    return Spilled(path, starts, np.bincount(found[counted], minlength=BUCKETS), sizes)


def shards(spilled: Sequence[Spilled], schema: pa.Schema) -> list[Shard]:
    """What was spilled, in buckets of the same number each, put together into shards: at least one."""
    rows, sizes = sum(file.rows for file in spilled), sum(file.bytes for file in spilled)
    found = []
    for first, end in _grouped(rows.tolist(), sizes.tolist()):
        pieces = (Piece(file.path, int(file.starts[first]), int(file.starts[end] - file.starts[first])) for file in spilled)
        found.append(Shard(tuple(piece for piece in pieces if piece.rows), schema))
    return found


def buckets_of(texts: pa.ChunkedArray, buckets: int = BUCKETS) -> Any:
    """The bucket of each text, a number below `buckets`: the CRC-32 of its lower case in UTF-8, which stays what it is."""
    encoded = texts.combine_chunks().dictionary_encode()
    hashed = np.fromiter((zlib.crc32(text.lower().encode()) for text in encoded.dictionary.to_pylist()), np.uint32)
    return (hashed % buckets).astype(np.uint16)[encoded.indices.to_numpy()]


def _grouped(rows: list[int], sizes: list[int]) -> Iterator[tuple[int, int]]:
    """The first bucket of each shard, and the one after its last."""
    first = group_rows = group_bytes = 0
    for bucket in range(BUCKETS):
        is_full = group_rows + rows[bucket] > SHARD_ROWS or group_bytes + sizes[bucket] > SHARD_BYTES
        if rows[bucket] and group_rows and is_full:
            yield first, bucket
            first, group_rows, group_bytes = bucket, 0, 0
        group_rows += rows[bucket]
        group_bytes += sizes[bucket]
    yield first, BUCKETS


def _row_bytes(rows: pa.Table) -> Any:
    """About the bytes of each row."""
    sizes = np.full(len(rows), 8 * rows.num_columns, np.int64)
    for column in rows.columns:
        if pa.types.is_string(column.type):
            sizes += pc.binary_length(column).fill_null(0).to_numpy()
    return sizes
