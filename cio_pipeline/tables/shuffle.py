"""Frames become the shards of a table's version."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from cio_pipeline.tables.files import StorageError, create, keeping_temporary_rows

ROW_GROUP = 10_000
"""Small enough that a few people's rows are found without reading the shard, where it is sorted by person."""

Finish = Callable[[pd.DataFrame], pd.DataFrame]
Writing = Callable[[UPath], AbstractContextManager[None]]


def shard_of(texts: pd.Series[Any], shards: int) -> Any:
    """The shard of each text, a number below `shards`; the same text is always in the same one."""
    hashed = pd.util.hash_array(texts.to_numpy(object), categorize=True)
    return hashed % shards


def file_name(table: str, shard: int) -> str:
    """What the file of a shard is called."""
    return f"{table}-{shard:04d}.parquet"


class Writer:
    """Frames in, split over the shards by a text column; each shard is finished by itself and written as one file."""

    def __init__(self, what: str, files: UPath, spill: Path, schema: pa.Schema, shards: int, writing: Writing) -> None:
        """what: the table and partition, for errors; files: the folder of the version, and the table's name in it.

        writing: what turns the errors of writing to a folder into `StorageError`.
        """
        self._what, self._files, self._spill, self._schema = what, files, spill, schema
        self._added, self._writing = [0] * shards, writing
        self._pieces: dict[int, pa.RecordBatchStreamWriter] = {}
        self._finish_shard: Finish = lambda frame: frame

    def add(self, frame: pd.DataFrame, by: str) -> None:
        """Adds rows; those with the same text in the column `by` come into the same shard."""
        if frame.empty:
            return
        shards = shard_of(frame[by], len(self._added))
        order = shards.argsort(kind="stable")
        rows, ends = self._arrow(frame.take(order)), shards[order].searchsorted(range(len(self._added)), "right")
        with keeping_temporary_rows(self._spill):
            for shard, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
                if start < end:
                    self._piece(shard).write_table(rows.slice(start, end - start))
                    self._added[shard] += int(end - start)

    def finish_each(self, finish: Finish) -> None:
        """Has `finish` make each shard's final rows out of those that were added."""
        self._finish_shard = finish

    def finish(self) -> list[int]:
        """Writes the shards and gives the rows of each. Raises `StorageError` where rows that were added are gone."""
        with keeping_temporary_rows(self._spill):
            self._close()
        with self._writing(self._files.parent.parent):
            self._files.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return [self._write(shard) for shard in range(len(self._added))]

    def discard(self) -> None:
        """Closes what is open; the spilled rows go with their temporary folder."""
        with suppress(OSError, pa.ArrowException):
            self._close()

    def _close(self) -> None:
        pieces, self._pieces = self._pieces, {}
        for piece in pieces.values():
            piece.close()

    def _piece(self, shard: int) -> pa.RecordBatchStreamWriter:
        """Rows are spilled as Arrow's stream: a Parquet file would keep the statistics of all its row groups in memory."""
        if shard not in self._pieces:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._pieces[shard] = pa.ipc.new_stream(str(self._spilled_to(shard)), self._schema, options=options)
        return self._pieces[shard]

    def _write(self, shard: int) -> int:
        """Writes a shard and gives its rows; in a method of its own, so that no two shards are in memory at once."""
        rows = self._arrow(self._finish_shard(self._spilled(shard)))
        with self._writing(self._files.parent.parent), create(self._files.parent / file_name(self._files.name, shard)) as file:
            pq.write_table(rows, file, compression="zstd", row_group_size=ROW_GROUP)
        pa.default_memory_pool().release_unused()
        return int(rows.num_rows)

    def _spilled(self, shard: int) -> pd.DataFrame:
        """The shard's rows, in one piece each column: pandas would make that of many again and again."""
        if not self._added[shard]:
            return self._schema.empty_table().to_pandas()
        with (
            keeping_temporary_rows(self._spill),
            pa.OSFile(str(self._spilled_to(shard))) as file,
            pa.ipc.open_stream(file) as spilled,
        ):
            rows = spilled.read_all()
        if rows.num_rows != self._added[shard]:
            raise StorageError(
                f"Of {self._added[shard]:,} rows of {self._what}, shard {shard}, only {rows.num_rows:,} are in {self._spill}:"
                " run this again."
            )
        return rows.combine_chunks().to_pandas()

    def _spilled_to(self, shard: int) -> Path:
        return self._spill / f"{shard:04d}.arrows"

    def _arrow(self, frame: pd.DataFrame) -> pa.Table:
        return pa.Table.from_pandas(frame, schema=self._schema, preserve_index=False)
