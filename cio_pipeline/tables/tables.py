"""The tables between the stages: sharded Parquet in a folder or at any fsspec URL.

    <root>/<group>/<partition>/current.json          names the version to read, and each shard's rows
    <root>/<group>/<partition>/<version>/<table>-0000.parquet

A table is a group of its own, but for those of `GROUPS`, which are replaced together. A version is written whole before
`current.json` names it, so nobody ever reads half a table, and two runs of one partition do no harm: the last to finish wins.
A version that was replaced stays for a day, for whoever is still reading it.

What is absent, short or unreadable is an error, never an empty table: rows are counted as they are added, spilled, written
and read.
"""

from __future__ import annotations

import json
import os
import resource
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from cio_pipeline.tables.files import StorageError, create, keeping_temporary_rows, reason, temporary_folder, writing
from cio_pipeline.tables.shuffle import Writer, file_name, shard_of

SHARD_ROWS = 70_000
SHARD_BYTES = 50_000_000
"""About the most that one shard holds, which bounds the memory of every stage: a shard is there about three times over."""

GROUPS = {"customers": "derived", "events": "derived", "rejects": "derived"}

OPEN_FILES = 10_000
KEPT_REPLACED = timedelta(days=1)
KEPT_UNFINISHED = timedelta(days=7)
"""A version that no `current.json` has named may be at work still; after so long it is a killed run's."""

TIME_FORMAT = "%Y%m%dT%H%M%S"


class NotMaterialized(StorageError):
    """A table's partition is read that no run has written; the message names both and what to do."""


@dataclass(frozen=True)
class Version:
    """One written version of a table's partition: its name, and the rows of each shard."""

    name: str
    shard_rows: tuple[int, ...]

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.shard_rows)

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return sum(self.shard_rows)


@dataclass
class Pointer:
    """What `current.json` holds: the version to read, the rows of each table's shards, and when others were replaced."""

    version: str
    rows: dict[str, list[int]]
    replaced: dict[str, str] = field(default_factory=dict)


def keep_private() -> None:
    """What this process writes from here on is readable by its owner only."""
    os.umask(0o077)


def allow_open_files() -> None:
    """Lets this process have a file open for each shard of a large day's tables: often only 1,024 may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def shards_for(rows: int, row_bytes: int) -> int:
    """How many shards so many rows of about so many bytes are split into."""
    return max(1, -(-rows // SHARD_ROWS), -(-rows * row_bytes // SHARD_BYTES))


class Tables:
    """Tables under one root, read and written shard by shard. Methods raise `StorageError` where that cannot be done."""

    def __init__(self, root: str, *, temporary: bool = False) -> None:
        """temporary: the tables last no longer than a run, which errors then advise to start again."""
        self.root, self._temporary = UPath(root), temporary
        self._writing = keeping_temporary_rows if temporary else writing

    def current(self, table: str, partition: str) -> Version | None:
        """The version to read, or None where no run has written this partition."""
        pointer = self._pointer(table, partition)
        return None if pointer is None or table not in pointer.rows else Version(pointer.version, tuple(pointer.rows[table]))

    def version(self, table: str, partition: str) -> Version:
        """The version to read. Raises `NotMaterialized` where no run has written this partition."""
        version = self.current(table, partition)
        if version is None:
            raise NotMaterialized(f"{table} of {partition} is not there: {self._remedy(table, partition)}")
        return version

    def read(self, table: str, partition: str, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        """The partition's shards, one frame each. Raises `NotMaterialized` where there is none."""
        version = self.version(table, partition)
        for shard in range(version.shards):
            frame = self._read(table, partition, version, shard, columns=columns)
            pa.default_memory_pool().release_unused()
            yield frame

    def shard(self, table: str, partition: str, version: Version, shard: int, columns: list[str] | None = None) -> pa.Table:
        """One shard of a version. Raises `StorageError` where it is not as it was written."""
        return self._arrow(table, partition, version, shard, columns=columns, use_threads=False)

    def rows(self, table: str, partition: str, by: str, values: list[str]) -> Iterator[pd.DataFrame]:
        """The rows whose column `by`, by which the table was split and sorted, has one of the values: a frame a shard.

        Reads only shards and row groups that may hold such a row. Raises `NotMaterialized` as `read` does.
        """
        version = self.version(table, partition)
        for shard in sorted(set(shard_of(pd.Series(values, dtype=object), version.shards).tolist())):
            found = self._read(table, partition, version, shard, filters=[(by, "in", values)])
            if not found.empty:
                yield found

    @contextmanager
    def replace(self, table: str, partition: str, schema: pa.Schema, shards: int) -> Iterator[Writer]:
        """A writer whose frames become the partition's new version when the block ends well, and vanish when it does not."""
        with self.replace_together(partition, {table: schema}, shards) as writers:
            yield writers[table]

    @contextmanager
    def replace_together(self, partition: str, schemas: Mapping[str, pa.Schema], shards: int) -> Iterator[dict[str, Writer]]:
        """As `replace` for all tables of a group: whoever reads finds the new version of all of them, or of none."""
        [folder] = {self._folder(table, partition) for table in schemas}
        name = f"{_now():{TIME_FORMAT}}-{uuid.uuid4().hex[:8]}"
        with ExitStack() as stack, _removed_on_failure(folder, name):
            spills = {table: stack.enter_context(temporary_folder()) for table in schemas}
            writers = {
                table: Writer(f"{table} of {partition}", folder / name / table, spills[table], schema, shards, self._writing)
                for table, schema in schemas.items()
            }
            for writer in writers.values():
                stack.callback(writer.discard)
            yield writers
            rows = {table: writer.finish() for table, writer in writers.items()}
            with self._writing(folder):
                self._publish(folder, Pointer(name, rows))

    def _folder(self, table: str, partition: str) -> UPath:
        return self.root / GROUPS.get(table, table) / partition

    def _pointer(self, table: str, partition: str) -> Pointer | None:
        path = self._folder(table, partition) / "current.json"
        try:
            return _read_pointer(path)
        except (OSError, TypeError, ValueError) as error:
            again = self._remedy(table, partition)
            raise StorageError(f"{table} of {partition} cannot be read ({path}: {reason(error)}): {again}") from None

    def _remedy(self, table: str, partition: str) -> str:
        if self._temporary:
            return f"look after what cleans the temporary folder {self.root}, and run this again."
        return f"materialize {table} for {partition} again."

    def _read(self, table: str, partition: str, version: Version, shard: int, **how: Any) -> pd.DataFrame:
        return self._arrow(table, partition, version, shard, **how).to_pandas()

    def _arrow(self, table: str, partition: str, version: Version, shard: int, **how: Any) -> pa.Table:
        """A shard's rows, or some of them. Raises `StorageError` where the file is not as it was written."""
        again = self._remedy(table, partition)
        try:
            path = self._folder(table, partition) / version.name / file_name(table, shard)
            with path.open("rb") as file:
                rows = pq.read_metadata(file).num_rows
                found = pq.read_table(file, **how)
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"Shard {shard} of {table} of {partition} cannot be read ({reason(error)}): {again}") from None
        if rows != version.shard_rows[shard]:
            raise StorageError(
                f"Shard {shard} of {table} of {partition} has {rows:,} rows, not the {version.shard_rows[shard]:,} that were"
                f" written: {again}"
            )
        return found

    def _publish(self, folder: UPath, new: Pointer) -> None:
        """Points to the new version, notes when the one before it was replaced, and removes what nobody reads any more."""
        path, written = folder / "current.json", folder / f"{new.version}.json"
        with suppress(OSError, TypeError, ValueError):
            if (before := _read_pointer(path)) is not None:
                new.replaced = {**before.replaced, before.version: f"{_now():{TIME_FORMAT}}"}
        kept = f"{_now() - KEPT_REPLACED:{TIME_FORMAT}}"
        gone = {name for name, when in new.replaced.items() if when < kept}
        new.replaced = {name: when for name, when in new.replaced.items() if name not in gone}
        with create(written) as file:
            file.write(json.dumps(vars(new)).encode())
        written.rename(path)
        _prune(folder, new, gone)


@contextmanager
def _removed_on_failure(folder: UPath, version: str) -> Iterator[None]:
    """A version that fails leaves nothing behind, as it fills the disk that it may have failed of.

    A run that is ended just after it has pointed to the version has not failed.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError, TypeError, ValueError):
            if (current := _read_pointer(folder / "current.json")) is not None and current.version == version:
                raise
        for left in (folder / version, folder / f"{version}.json"):
            with suppress(OSError):
                left.rmdir(recursive=True) if left.is_dir() else left.unlink()
        raise


def _prune(folder: UPath, current: Pointer, gone: set[str]) -> None:
    """Removes versions that were replaced long ago, and those of killed runs. What cannot be removed stays."""
    unfinished = f"{_now() - KEPT_UNFINISHED:{TIME_FORMAT}}"
    with suppress(OSError):
        for found in folder.iterdir():
            name = found.name
            left = name not in (current.version, *current.replaced) and name < unfinished
            if found.is_dir() and (name in gone or left):
                found.rmdir(recursive=True)


def _read_pointer(path: UPath) -> Pointer | None:
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or not isinstance(found.get("rows"), dict):
        raise ValueError("it names no version")  # noqa: TRY004
    return Pointer(**found)


def _now() -> datetime:
    return datetime.now(timezone.utc)
