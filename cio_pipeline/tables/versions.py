"""The versions of a table's partition: what is written of one, which is the current one, and when old ones are removed."""

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
from upath import UPath

from cio_pipeline.tables.files import create, errors_of, make_folder, read_file, replace_file
from cio_pipeline.tables.parquet import as_schema, encoded

KEPT_REPLACED = timedelta(days=1)
"""How long a replaced version is kept, for runs that still read it."""

KEPT_UNFINISHED = timedelta(days=7)
"""How long a version that no `current.json` has named is kept. A run that has written for longer must have been killed."""

TIME_FORMAT = "%Y%m%dT%H%M%S"


@dataclass(frozen=True)
class Version:
    """One written version of a table's partition.

    shard_rows and hashes: the number of rows and the SHA-256 of each shard's file; metadata: what was stored with the version,
    such as the fingerprint of its inputs.
    """

    name: str
    shard_rows: tuple[int, ...]
    hashes: tuple[str, ...]
    metadata: Mapping[str, Any]

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.shard_rows)

    @property
    def rows(self) -> int:
        """How many rows there are in all."""
        return sum(self.shard_rows)

    @property
    def content_hash(self) -> str:
        """A hash of the files: if it is the same, so are the rows. Another version of pyarrow may write the same rows
        differently."""
        return sha256("".join(self.hashes).encode()).hexdigest()


class WrittenShard(NamedTuple):
    """A shard that was written: its rows and the hash of its file, by table."""

    rows: dict[str, int]
    hashes: dict[str, str]


@dataclass
class Pointer:
    """The contents of `current.json`.

    version: the current version's name; rows and hashes: of each table's shards; about: the version's metadata (the name that
    stored files use); replaced: when each earlier version was replaced (`TIME_FORMAT`), by name.
    """

    version: str
    rows: dict[str, list[int]]
    hashes: dict[str, list[str]]
    about: dict[str, Any]
    replaced: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of a new version, in any process."""

    folder: UPath = field(repr=False)
    schemas: Mapping[str, pa.Schema] = field(repr=False)
    writing: Callable[[UPath], AbstractContextManager[None]]
    """Turns errors of writing there into `StorageError`."""

    def write(self, shard: int, tables: Mapping[str, pa.Table | pd.DataFrame]) -> WrittenShard:
        """Writes a shard of each table. Raises `StorageError` if the folder cannot be written."""
        rows, hashes = {}, {}
        for table, schema in self.schemas.items():
            converted = as_schema(tables[table], schema)
            rows[table], content = converted.num_rows, encoded(converted)
            hashes[table] = sha256(content).hexdigest()
            with self.writing(self.folder.parent):
                make_folder(self.folder)
                with create(self.folder / file_name(table, shard)) as file:
                    file.write(content)
        pa.default_memory_pool().release_unused()
        return WrittenShard(rows, hashes)


@dataclass
class NewVersion:
    """A version that is being written: append what `writer` returns to `shards`, in order; `metadata` is stored with the
    version."""

    writer: ShardWriter
    shards: list[WrittenShard] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def new_name() -> str:
    """Returns a name for a version. Names sort by time."""
    return f"{_now():{TIME_FORMAT}}-{uuid.uuid4().hex[:8]}"


def publish(folder: UPath, new: Pointer) -> None:
    """Makes a version the current one, notes when the previous one was replaced, and removes those that nobody reads any
    more."""
    path = folder / "current.json"
    with suppress(*errors_of(folder, TypeError, ValueError)):
        if (before := read_pointer(path)) is not None:
            new.replaced = {**before.replaced, before.version: f"{_now():{TIME_FORMAT}}"}
    oldest = f"{_now() - KEPT_REPLACED:{TIME_FORMAT}}"
    outdated = {name for name, when in new.replaced.items() if when < oldest}
    new.replaced = {name: when for name, when in new.replaced.items() if name not in outdated}
    replace_file(path, json.dumps(vars(new)).encode())
    _prune(folder, new, outdated)


@contextmanager
def removed_on_failure(folder: UPath, version: str) -> Iterator[None]:
    """Removes the version if the block fails, as the disk may be full. If the version has become the current one, it has not
    failed, even if the run ends just after that."""
    try:
        yield
    except BaseException:
        current = None
        with suppress(*errors_of(folder, TypeError, ValueError)):
            current = read_pointer(folder / "current.json")
        if current is not None and current.version == version:
            raise
        with suppress(*errors_of(folder)):
            (folder / version).rmdir(recursive=True)
        raise


def _prune(folder: UPath, current: Pointer, outdated: set[str]) -> None:
    """Removes outdated versions, and the unfinished ones of killed runs. What cannot be removed stays."""
    oldest = f"{_now() - KEPT_UNFINISHED:{TIME_FORMAT}}"
    with suppress(*errors_of(folder)):
        for entry in folder.fs.ls(folder.path, detail=True):
            name = PurePosixPath(entry["name"]).name
            is_unfinished = name not in (current.version, *current.replaced) and name < oldest
            if entry["type"] == "directory" and (name in outdated or is_unfinished):
                folder.fs.rm(str(entry["name"]), recursive=True)


def read_pointer(path: UPath) -> Pointer | None:
    """Returns the pointer in `current.json`; None if there is no file. Raises `ValueError` or `TypeError` if it is not a
    pointer."""
    if (content := read_file(path)) is None:
        return None
    pointer = json.loads(content)
    if not isinstance(pointer, dict) or not isinstance(pointer.get("rows"), dict) or not pointer.get("hashes"):
        raise ValueError("it names no version")
    return Pointer(**pointer)


def _now() -> datetime:
    return datetime.now(UTC)


def file_name(table: str, shard: int) -> str:
    """Returns the name of a shard's file."""
    return f"{table}-{shard:04d}.parquet"
