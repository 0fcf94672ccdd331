"""The tables of the steps: sharded Parquet in a folder or at any fsspec URL.

    <root>/<group>/<partition>/current.json          names the version to read, and what its shards hold
    <root>/<group>/<partition>/<version>/<table>-0000.parquet

A table is a group of its own, except those of `GROUPS`, which are replaced together. A version is written completely before
`current.json` names it. So nobody ever reads half a table, and two runs of a partition do no harm: the last to finish wins. A
version that was replaced stays for a day, for runs that still read it.

What is missing, short or unreadable is an error, never an empty table: rows are counted when they are written and read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from cio_pipeline.tables.files import StorageError, data_path, errors_of, temporary_file_errors, unreadable, writing
from cio_pipeline.tables.parquet import may_hold
from cio_pipeline.tables.versions import (
    NewVersion,
    Pointer,
    ShardWriter,
    Version,
    file_name,
    new_name,
    publish,
    read_pointer,
    removed_on_failure,
)

GROUPS = {"customers": "derived", "events": "derived", "rejects": "derived"}


class NotMaterialized(StorageError):
    """A table's partition that is read was never written; the message names both, and what to do."""


class Tables:
    """Tables under one root, read and written shard by shard. Methods raise `StorageError` if that fails."""

    def __init__(self, root: str, *, temporary: bool = False) -> None:
        """temporary: the tables last no longer than a run, so errors advise to start the run again."""
        self.root, self._temporary = data_path(root), temporary
        self._writing = temporary_file_errors if temporary else writing

    def find_version(self, table: str, partition: str) -> Version | None:
        """Returns the current version, or None if no run has written this partition."""
        pointer = self._pointer(table, partition)
        if pointer is None or table not in pointer.rows:
            return None
        return Version(pointer.version, tuple(pointer.rows[table]), tuple(pointer.hashes[table]), pointer.about)

    def version(self, table: str, partition: str) -> Version:
        """Returns the current version. Raises `NotMaterialized` if no run has written this partition."""
        version = self.find_version(table, partition)
        if version is None:
            raise NotMaterialized(f"{table} of {partition} is not there: {self._remedy(table, partition)}")
        return version

    def read(self, table: str, partition: str, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        """Yields the partition's shards, one frame each. Raises `NotMaterialized` if there is none."""
        for shard in self.read_arrow(table, partition, columns):
            yield shard.to_pandas()

    def read_arrow(self, table: str, partition: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yields the partition's shards, one Arrow table each. Raises `NotMaterialized` if there is none."""
        version = self.version(table, partition)
        for shard in range(version.shards):
            yield self.shard(table, partition, version, shard, columns)
            pa.default_memory_pool().release_unused()

    def shard(self, table: str, partition: str, version: Version, shard: int, columns: list[str] | None = None) -> pa.Table:
        """One shard of a version. Raises `StorageError` if it does not have the rows that were written."""
        with self._opened(table, partition, version, shard) as file:
            rows: pa.Table = file.read(columns, use_threads=False)
        return rows

    def rows_where(self, table: str, partition: str, version: Version, by: str, values: list[str]) -> Iterator[pa.Table]:
        """Yields the rows of this version whose column `by` has one of the values: one table for each shard that has any.

        Each shard is sorted by that column, and only row groups that may have such a row are read. Raises `StorageError`.
        """
        wanted = sorted(set(values))
        for shard in range(version.shards):
            with self._opened(table, partition, version, shard) as file:
                groups = [group for group in range(file.num_row_groups) if may_hold(file.metadata.row_group(group), by, wanted)]
                rows = file.read_row_groups(groups)
            rows = rows.filter(pc.is_in(rows[by], pa.array(wanted, pa.string())))
            if len(rows):
                yield rows

    def head(self, table: str, partition: str, rows: int, columns: list[str]) -> list[dict[str, Any]]:
        """Returns the first `rows` rows, as dictionaries. Raises `NotMaterialized` as `read` does."""
        version, first = self.version(table, partition), list[dict[str, Any]]()
        for shard in (number for number, count in enumerate(version.shard_rows) if count):
            if len(first) < rows:
                with self._opened(table, partition, version, shard) as file:
                    first += next(file.iter_batches(rows, columns=columns)).to_pylist()
        return first[:rows]

    def is_intact(self, table: str, partition: str) -> bool:
        """Returns whether the files of the current version are exactly as they were written."""
        version = self.version(table, partition)
        folder = self._read_from(table, partition) / version.name
        try:
            hashes = [sha256((folder / file_name(table, shard)).read_bytes()).hexdigest() for shard in range(version.shards)]
        except errors_of(folder):
            return False
        return hashes == list(version.hashes)

    @contextmanager
    def replace(self, partition: str, schemas: Mapping[str, pa.Schema]) -> Iterator[NewVersion]:
        """Opens a new version of a table, or of all tables of a group. It is published if the block succeeds, and deleted if it
        fails: readers find the new version of all of them, or of none."""
        [folder] = {self._folder(table, partition) for table in schemas}
        name = new_name()
        new = NewVersion(ShardWriter(folder / name, schemas, self._writing))
        with removed_on_failure(folder, name):
            yield new
            rows = {table: [shard.rows[table] for shard in new.shards] for table in schemas}
            hashes = {table: [shard.hashes[table] for shard in new.shards] for table in schemas}
            with self._writing(folder):
                publish(folder, Pointer(name, rows, hashes, new.metadata))

    def _folder(self, table: str, partition: str) -> UPath:
        return self.root / GROUPS.get(table, table) / partition

    def _read_from(self, table: str, partition: str) -> UPath:
        """Returns the folder that a partition is read from."""
        return self._folder(table, partition)

    def _pointer(self, table: str, partition: str) -> Pointer | None:
        path = self._read_from(table, partition) / "current.json"
        try:
            return read_pointer(path)
        except errors_of(path, TypeError, ValueError) as error:
            again = f": {self._remedy(table, partition)}"
            raise unreadable(f"{table} of {partition}", error, f"{path}: ", again) from None

    def _remedy(self, table: str, partition: str) -> str:
        if self._temporary:
            return f"check what deletes files in the temporary folder {self.root}, and run this again."
        return f"materialize {table} for {partition} again."

    @contextmanager
    def _opened(self, table: str, partition: str, version: Version, shard: int) -> Iterator[pq.ParquetFile]:
        """The file of a shard. Raises `StorageError` if it cannot be read, also within the block, or does not have the rows
        that were written."""
        what = f"Shard {shard} of {table} of {partition}"
        path = self._read_from(table, partition) / version.name / file_name(table, shard)
        try:
            with path.open("rb") as opened, pq.ParquetFile(opened) as file:
                rows = file.metadata.num_rows
                if rows == version.shard_rows[shard]:
                    yield file
                    return
        except errors_of(path) as error:
            raise unreadable(what, error, "", f": {self._remedy(table, partition)}") from None
        written, remedy = version.shard_rows[shard], self._remedy(table, partition)
        raise StorageError(f"{what} has {rows:,} rows, not the {written:,} that were written: {remedy}")
