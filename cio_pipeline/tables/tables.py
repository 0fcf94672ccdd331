"""The tables between the stages: sharded Parquet in a folder or at any fsspec URL.

    <root>/<group>/<partition>/current.json          names the version to read, and what its shards hold
    <root>/<group>/<partition>/<version>/<table>-0000.parquet

A table is a group of its own, but for those of `GROUPS`, which are replaced together. A version is written whole before
`current.json` names it, so nobody ever reads half a table, and two runs of one partition do no harm: the last to finish wins.
A version that was replaced stays for a day, for whoever is still reading it.

What is absent, short or unreadable is an error, never an empty table: rows are counted as they are written and read.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from cio_pipeline.tables.files import (
    StorageError,
    create,
    errors_of,
    keeping_temporary_rows,
    make_folder,
    place,
    read_file,
    replace_file,
    unreadable,
    writing,
)
from cio_pipeline.tables.parquet import as_schema, encoded, may_hold

GROUPS = {"customers": "derived", "events": "derived", "rejects": "derived"}

KEPT_REPLACED = timedelta(days=1)
KEPT_UNFINISHED = timedelta(days=7)
"""A version that no `current.json` has named may be at work still; after so long it is a killed run's."""

TIME_FORMAT = "%Y%m%dT%H%M%S"


class NotMaterialized(StorageError):
    """A table's partition is read that no run has written; the message names both and what to do."""


@dataclass(frozen=True)
class Version:
    """One written version of a table's partition: its name, the rows and the hash of each shard's file, and what was noted of
    it when it was written."""

    name: str
    shard_rows: tuple[int, ...]
    hashes: tuple[str, ...]
    about: Mapping[str, Any]

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.shard_rows)

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return sum(self.shard_rows)

    @property
    def content(self) -> str:
        """The same for versions that hold the same, and for no others."""
        return sha256("".join(self.hashes).encode()).hexdigest()


class Written(NamedTuple):
    """What was written of a shard: the rows and the hash of the file, by table."""

    rows: dict[str, int]
    hashes: dict[str, str]


@dataclass
class Pointer:
    """What `current.json` holds: the version to read, the rows and hashes of each table's shards, what was noted of the
    version, and when others were replaced."""

    version: str
    rows: dict[str, list[int]]
    hashes: dict[str, list[str]]
    about: dict[str, Any]
    replaced: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of a new version, in whichever process."""

    folder: UPath = field(repr=False)
    schemas: Mapping[str, pa.Schema] = field(repr=False)
    writing: Callable[[UPath], AbstractContextManager[None]]
    """What makes `StorageError` of the errors of writing there."""

    def write(self, shard: int, tables: Mapping[str, pa.Table | pd.DataFrame]) -> Written:
        """Writes a shard of each table. Raises `StorageError` where the folder cannot be written."""
        rows, hashes = {}, {}
        for table, schema in self.schemas.items():
            found = as_schema(tables[table], schema)
            rows[table], content = found.num_rows, encoded(found)
            hashes[table] = sha256(content).hexdigest()
            with self.writing(self.folder.parent):
                make_folder(self.folder)
                with create(self.folder / file_name(table, shard)) as file:
                    file.write(content)
        pa.default_memory_pool().release_unused()
        return Written(rows, hashes)


@dataclass
class NewVersion:
    """A version that is being written: `shards` takes what `writer` gave of each shard, in their order; `about` is kept."""

    writer: ShardWriter
    shards: list[Written] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


class Tables:
    """Tables under one root, read and written shard by shard. Methods raise `StorageError` where that cannot be done."""

    def __init__(self, root: str, *, temporary: bool = False) -> None:
        """temporary: the tables last no longer than a run, which errors then advise to start again."""
        self.root, self._temporary = place(root), temporary
        self._writing = keeping_temporary_rows if temporary else writing

    def current(self, table: str, partition: str) -> Version | None:
        """The version to read, or None where no run has written this partition."""
        found = self._pointer(table, partition)
        if found is None or table not in found.rows:
            return None
        return Version(found.version, tuple(found.rows[table]), tuple(found.hashes[table]), found.about)

    def version(self, table: str, partition: str) -> Version:
        """The version to read. Raises `NotMaterialized` where no run has written this partition."""
        version = self.current(table, partition)
        if version is None:
            raise NotMaterialized(f"{table} of {partition} is not there: {self._remedy(table, partition)}")
        return version

    def read(self, table: str, partition: str, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        """The partition's shards, one frame each. Raises `NotMaterialized` where there is none."""
        for shard in self.read_arrow(table, partition, columns):
            yield shard.to_pandas()

    def read_arrow(self, table: str, partition: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The partition's shards as `read` gives them, as Arrow tables."""
        version = self.version(table, partition)
        for shard in range(version.shards):
            yield self.shard(table, partition, version, shard, columns)
            pa.default_memory_pool().release_unused()

    def shard(self, table: str, partition: str, version: Version, shard: int, columns: list[str] | None = None) -> pa.Table:
        """One shard of a version. Raises `StorageError` where it is not as it was written."""
        with self._opened(table, partition, version, shard) as file:
            found: pa.Table = file.read(columns, use_threads=False)
        return found

    def rows(self, table: str, partition: str, by: str, values: list[str]) -> Iterator[pa.Table]:
        """The rows whose column `by`, by which each shard is sorted, has one of the values: of each shard that has any.

        Reads only row groups that may hold such a row. Raises `NotMaterialized` as `read` does.
        """
        version, wanted = self.version(table, partition), sorted(set(values))
        for shard in range(version.shards):
            with self._opened(table, partition, version, shard) as file:
                groups = [group for group in range(file.num_row_groups) if may_hold(file.metadata.row_group(group), by, wanted)]
                found = file.read_row_groups(groups)
            found = found.filter(pc.is_in(found[by], pa.array(wanted, pa.string())))
            if len(found):
                yield found

    def head(self, table: str, partition: str, rows: int, columns: list[str]) -> list[dict[str, Any]]:
        """The first so many rows, by column. Raises `NotMaterialized` as `read` does."""
        version, found = self.version(table, partition), list[dict[str, Any]]()
        for shard in (number for number, count in enumerate(version.shard_rows) if count):
            if len(found) < rows:
                with self._opened(table, partition, version, shard) as file:
                    found += next(file.iter_batches(rows, columns=columns)).to_pylist()
        return found[:rows]

    def is_whole(self, table: str, partition: str) -> bool:
        """Whether the files of the version to read are just as they were written."""
        version = self.version(table, partition)
        folder = self._read_from(table, partition) / version.name
        try:
            found = [sha256((folder / file_name(table, shard)).read_bytes()).hexdigest() for shard in range(version.shards)]
        except errors_of(folder):
            return False
        return found == list(version.hashes)

    @contextmanager
    def replace(self, partition: str, schemas: Mapping[str, pa.Schema]) -> Iterator[NewVersion]:
        """A new version of a table, or of all tables of a group, which becomes the one to read when the block ends well, and
        vanishes when it does not: whoever reads finds the new version of all of them, or of none."""
        [folder] = {self._folder(table, partition) for table in schemas}
        name = f"{_now():{TIME_FORMAT}}-{uuid.uuid4().hex[:8]}"
        new = NewVersion(ShardWriter(folder / name, schemas, self._writing))
        with _removed_on_failure(folder, name):
            yield new
            rows = {table: [shard.rows[table] for shard in new.shards] for table in schemas}
            hashes = {table: [shard.hashes[table] for shard in new.shards] for table in schemas}
            with self._writing(folder):
                self._publish(folder, Pointer(name, rows, hashes, new.about))

    def _folder(self, table: str, partition: str) -> UPath:
        return self.root / GROUPS.get(table, table) / partition

    def _read_from(self, table: str, partition: str) -> UPath:
        """The folder that a partition is read from."""
        return self._folder(table, partition)

    def _pointer(self, table: str, partition: str) -> Pointer | None:
        path = self._read_from(table, partition) / "current.json"
        try:
            return _read_pointer(path)
        except errors_of(path, TypeError, ValueError) as error:
            again = f": {self._remedy(table, partition)}"
            raise unreadable(f"{table} of {partition}", error, f"{path}: ", again) from None

    def _remedy(self, table: str, partition: str) -> str:
        if self._temporary:
            return f"look after what cleans the temporary folder {self.root}, and run this again."
        return f"materialize {table} for {partition} again."

    @contextmanager
    def _opened(self, table: str, partition: str, version: Version, shard: int) -> Iterator[pq.ParquetFile]:
        """The file of a shard. Raises `StorageError` where it cannot be read, also in the block, or has not the rows that were
        written."""
        again, what = f": {self._remedy(table, partition)}", f"Shard {shard} of {table} of {partition}"
        path = self._read_from(table, partition) / version.name / file_name(table, shard)
        try:
            with path.open("rb") as opened, pq.ParquetFile(opened) as file:
                rows = file.metadata.num_rows
                if rows == version.shard_rows[shard]:
                    yield file
                    return
        except errors_of(path) as error:
            raise unreadable(what, error, "", again) from None
        raise StorageError(f"{what} has {rows:,} rows, not the {version.shard_rows[shard]:,} that were written{again}")

    def _publish(self, folder: UPath, new: Pointer) -> None:
        """Points to the new version, notes when the one before it was replaced, and removes what nobody reads any more."""
        path = folder / "current.json"
        with suppress(*errors_of(folder, TypeError, ValueError)):
            if (before := _read_pointer(path)) is not None:
                new.replaced = {**before.replaced, before.version: f"{_now():{TIME_FORMAT}}"}
        kept = f"{_now() - KEPT_REPLACED:{TIME_FORMAT}}"
        gone = {name for name, when in new.replaced.items() if when < kept}
        new.replaced = {name: when for name, when in new.replaced.items() if name not in gone}
        replace_file(path, json.dumps(vars(new)).encode())
        _prune(folder, new, gone)


@contextmanager
def _removed_on_failure(folder: UPath, version: str) -> Iterator[None]:
    """A version that fails leaves nothing behind, as it fills the disk that it may have failed of.

    A run that is ended just after it has pointed to the version has not failed.
    """
    try:
        yield
    except BaseException:
        current = None
        with suppress(*errors_of(folder, TypeError, ValueError)):
            current = _read_pointer(folder / "current.json")
        if current is not None and current.version == version:
            raise
        with suppress(*errors_of(folder)):
            (folder / version).rmdir(recursive=True)
        raise


def _prune(folder: UPath, current: Pointer, gone: set[str]) -> None:
    """Removes versions that were replaced long ago, and those of killed runs. What cannot be removed stays."""
    unfinished = f"{_now() - KEPT_UNFINISHED:{TIME_FORMAT}}"
    with suppress(*errors_of(folder)):
        for found in folder.fs.ls(folder.path, detail=True):
            name = PurePosixPath(found["name"]).name
            left = name not in (current.version, *current.replaced) and name < unfinished
            if found["type"] == "directory" and (name in gone or left):
                folder.fs.rm(str(found["name"]), recursive=True)


def _read_pointer(path: UPath) -> Pointer | None:
    if (content := read_file(path)) is None:
        return None
    found = json.loads(content)
    if not isinstance(found, dict) or not isinstance(found.get("rows"), dict) or not found.get("hashes"):
        raise ValueError("it names no version")
    return Pointer(**found)


def _now() -> datetime:
    return datetime.now(UTC)


def file_name(table: str, shard: int) -> str:
    """What the file of a shard is called."""
    return f"{table}-{shard:04d}.parquet"
